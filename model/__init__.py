"""The network, its training, checkpoints and export: everything that handles tensors, nothing that knows of studies."""
