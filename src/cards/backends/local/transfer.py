"""Transfers of arrays to a device, which neither wait for it nor make it wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def pinned(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return the array as a tensor of this process, in memory from which CUDA devices copy without waiting."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if device.type == "cuda" else tensor


def to_device(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """Return arrays of one type as tensors on the device, in one transfer."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    flat = pinned(np.concatenate([array.ravel() for array in arrays]), device).to(device, non_blocking=True)
    parts = flat.split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
