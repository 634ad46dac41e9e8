"""The memory that models and caches need on a device, compared with what is free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open

from cards.memory import cache_size, memory_at_hand

FLOATS = ("F64", "F32", "F16", "BF16")  # weights that loading converts
BYTES = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2}  # 1 for other types


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that models can still use on a device, or None if that is unknown."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return memory_at_hand() if device.type == "cpu" else None


class CacheSize(Protocol):
    """The size of a cache: its number of slots, and the tokens in each."""

    def __call__(self, per_token: float, per_row: float = 0.0, /) -> tuple[int, int]:
        """Return it from the bytes of the keys and values of a token, and those that a slot needs at any length."""
        ...


def cache_size_on(device: torch.device, slots: int | None, context: int | None, longest: int) -> CacheSize:
    """Return the function for the size of a cache on this device (see `cache_size`)."""

    def size(per_token: float, per_row: float = 0.0) -> tuple[int, int]:
        return cache_size(slots, context, longest, per_token, free_memory(device), per_row)

    return size


def tensor_bytes(value: Any) -> int:
    """Return the bytes of all tensors inside an object, such as a model's own cache. Shared memory counts once."""
    found: dict[int, int] = {}
    seen: dict[int, Any] = {}  # keeps the objects alive, so that no id is used twice
    open_values = [value]
    while open_values:
        item = open_values.pop()
        if id(item) in seen or isinstance(item, torch.nn.Module):
            continue
        seen[id(item)] = item
        if isinstance(item, torch.Tensor):
            storage = item.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(item, Mapping):
            open_values += item.values()
        elif isinstance(item, list | tuple | set):
            open_values += item
        else:
            open_values += getattr(item, "__dict__", {}).values()
    return sum(found.values())


def weights_size(files: Iterable[Path], dtype: torch.dtype) -> int:
    """Return the size in bytes of the weights in safetensors files after loading with this dtype. Only headers are read."""
    total = 0
    for file in (file for file in files if file.suffix == ".safetensors"):
        with safe_open(file, "pt") as weights:
            for key in weights.keys():  # noqa: SIM118 (it is no mapping)
                tensor = weights.get_slice(key)
                size = dtype.itemsize if tensor.get_dtype() in FLOATS else BYTES.get(tensor.get_dtype(), 1)
                total += size * prod(tensor.get_shape())
    return total
