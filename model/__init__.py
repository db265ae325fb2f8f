"""The network, its training and its checkpoints: everything that knows a tensor and nothing that knows a study."""
