"""Transfer of arrays to a device."""

import numpy as np
import numpy.typing as npt
import torch


def to_device(values: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Return an array as a tensor on `device`; to a GPU through pinned memory, so that the CPU does not wait for it."""
    tensor = torch.as_tensor(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
