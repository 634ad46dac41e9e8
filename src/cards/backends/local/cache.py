"""The KV cache of transformers models: preallocated tensors for packed forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cards.backends.local.attention import Group, PackedStep, use_step
from cards.engines.slots import Cache, Read
from cards.errors import ModelError

KEY_MULTIPLE = 64  # on a GPU the number of keys is rounded up to this, because some kernels are planned anew for each length
SPREAD = 2  # a view of the cache with idle rows is cheaper than a copy of the rows up to this ratio of slots to rows


class TorchCache(Cache):
    """The cache of a transformers model: keys and values of rows * length tokens, allocated at the first step.

    forward(input_ids [1, n], position_ids [1, n], last [outputs]) runs the model on packed tokens and returns its outputs
    at the packed indices `last`.
    """

    device: torch.device

    def __init__(
        self, forward: Callable[[Tensor, Tensor, Tensor], Tensor], rows: int, length: int, device: torch.device
    ) -> None:
        super().__init__(rows, length, device)
        self.forward = forward
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.key_multiple = 1 if device.type == "cpu" else KEY_MULTIPLE
        self.max_distance = SPREAD if device.type == "cpu" else rows  # in slots, between neighbouring rows of a group

    @torch.inference_mode()
    def read(self, rows: Sequence[Read], counts: Sequence[int]) -> Tensor:
        step, ids, last = self._pack(rows, counts)
        with use_step(step):
            output = self.forward(ids, step.position.unsqueeze(0), last)
        if output.is_cuda:
            torch.cuda.synchronize(output.device)
        return output

    @torch.inference_mode()
    def copy(self, source: int, target: int, start: int, end: int) -> None:
        for keys, values in self.layers.values():
            keys[target, start:end] = keys[source, start:end]
            values[target, start:end] = values[source, start:end]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts))

    def clear(self) -> None:
        self.layers.clear()

    def translate_error(self, error: Exception) -> Exception:
        return explain_error(error, self.device)

    @property
    def size(self) -> int:
        """The size of all keys and values in bytes, after the first step."""
        return sum(part.nbytes for layer in self.layers.values() for part in layer)

    def _layer(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of a layer. They start as zeros, because masked entries must be finite too."""
        if layer not in self.layers:
            keys, values = (x.new_zeros(self.rows, self.length, *x.shape[1:]) for x in (key, value))
            self.layers[layer] = keys, values
        return self.layers[layer]

    def _pack(self, rows: Sequence[Read], outputs: Sequence[int]) -> tuple[PackedStep, Tensor, Tensor]:
        """Return the step, the packed token ids [1, tokens], and the packed indices of the last `outputs` tokens per row."""
        slots, held, counts = [slot for slot, _, _ in rows], [start for _, start, _ in rows], [len(new) for _, _, new in rows]
        ends = list(accumulate(counts))
        starts = [end - count for end, count in zip(ends, counts, strict=True)]
        position = np.concatenate([np.arange(h, h + count) for h, count in zip(held, counts, strict=True)])
        place = np.repeat(np.array(slots) * self.length, counts) + position
        groups, orders = [], []
        for members in self._groups(slots, counts):
            first, height = slots[members[0]], slots[members[-1]] - slots[members[0]] + 1
            if view := height <= SPREAD * len(members):
                places = [slots[i] - first for i in members]
            else:
                places, height = list(range(len(members))), len(members)
            width, keys = max(counts[i] for i in members), [held[i] + counts[i] for i in members]
            length = min(-(-max(keys) // self.key_multiple) * self.key_multiple, self.length)
            tokens = np.full((height, width), -1)
            for row, i in zip(places, members, strict=True):
                tokens[row, : counts[i]] = np.arange(starts[i], ends[i])
            order = tokens.ravel()
            adjacent = bool((np.diff(order) == 1).all())
            groups.append(
                Group(
                    rows=slice(first, first + height) if view else self._tensor(np.array([slots[i] for i in members])),
                    count=height,
                    length=length,
                    unmasked=width == 1 and min(keys) == length,
                    queries=slice(int(order[0]), int(order[-1]) + 1)
                    if adjacent
                    else self._tensor(np.where(tokens < 0, order[0], tokens)),
                )
            )
            orders.append(order)
        order = np.concatenate(orders)
        unpack = None
        if len(order) != ends[-1] or (order != np.arange(ends[-1])).any():
            unpack = self._tensor(np.argsort(order, kind="stable")[len(order) - ends[-1] :])
        ids = self._tensor(np.concatenate([np.asarray(new, np.int64) for _, _, new in rows])).unsqueeze(0)
        step = PackedStep(self._tensor(place), self._tensor(position), groups, unpack, self._layer)
        last = [i for end, count in zip(ends, outputs, strict=True) for i in range(end - count, end)]
        return step, ids, self._tensor(np.array(last))

    def _groups(self, slots: Sequence[int], counts: Sequence[int]) -> Iterable[list[int]]:
        """Group neighbouring rows with 1, 2-3, 4-7, ... new tokens. On a CPU, idle slots cost more than additional calls."""
        by_size: dict[int, list[list[int]]] = {}
        for i, (slot, count) in enumerate(zip(slots, counts, strict=True)):
            groups = by_size.setdefault(count.bit_length(), [[]])
            if groups[-1] and slot - slots[groups[-1][-1]] > self.max_distance:
                groups.append([])
            groups[-1].append(i)
        return chain.from_iterable(by_size.values())

    def _tensor(self, array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)


def explain_error(error: Exception, device: torch.device) -> Exception:
    """Return a ModelError with advice for an out-of-memory error, and any other error unchanged."""
    if not isinstance(error, torch.OutOfMemoryError):
        return error
    return ModelError(
        f"{device} ran out of memory in a step of the model. Load the model with fewer slots or another dtype. ({error})"
    )
