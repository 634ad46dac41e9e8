"""The KV cache of transformers models: preallocated tensors for packed forward passes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from cards.backends.local.attention import Group, PackedStep, Step, use_step
from cards.backends.local.graphs import StepGraphs, padded
from cards.backends.local.packing import SPREAD, Packed, pack_groups, pack_paged
from cards.backends.local.paged import PAGE, PagedStep
from cards.backends.local.transfer import to_device
from cards.engines.slots import Cache, Read
from cards.errors import ModelError

log = logging.getLogger("cards")

KEY_MULTIPLE = 64  # on a GPU the number of keys is rounded up to this, because some kernels are planned anew for each length


class TorchCache(Cache):
    """The cache of a transformers model: keys and values of rows * length tokens, allocated at the first step.

    forward(input_ids [1, n], position_ids [1, n], last [outputs]) runs the model on packed tokens and returns its outputs
    at the packed indices `last`.
    paged: use FlashAttention's paged cache. graphs: run decoding steps as graphs, which need a CUDA device.
    """

    device: torch.device

    def __init__(
        self,
        forward: Callable[[Tensor, Tensor, Tensor], Tensor],
        rows: int,
        length: int,
        device: torch.device,
        *,
        paged: bool = False,
        graphs: bool = False,
    ) -> None:
        super().__init__(rows, length, device)
        self.paged = paged
        self.room = -(-length // PAGE) * PAGE if paged else length  # positions of a slot in memory
        self.graphs = StepGraphs(self._decode, rows, length, device) if graphs else None
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values [slots, room, heads, dim]
        self.flat: dict[int, tuple[Tensor, Tensor]] = {}  # the same as [slots * room, heads, dim]
        self.key_multiple = 1 if device.type == "cpu" else KEY_MULTIPLE
        self.max_distance = SPREAD if device.type == "cpu" else rows  # in slots, between neighbouring rows of a group
        self.use(forward)

    def use(self, forward: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        """Run another function from now on, whose layers are those of the one before."""
        self.forward = forward
        if self.graphs is not None:
            self.graphs.clear()

    @torch.inference_mode()
    def read(self, rows: Sequence[Read], counts: Sequence[int]) -> Tensor:
        if self.graphs is not None and self.layers and all(len(new) == 1 for _, _, new in rows):
            try:
                return self._replay(self.graphs, rows)
            except Exception as reason:  # models bring their own code
                self.graphs = None
                log.warning("Decoding steps run without CUDA graphs, which is slower: %s", str(reason).splitlines()[0])
        step, ids, last = self._pack(rows, counts)
        with use_step(step):
            return self.forward(ids.unsqueeze(0), step.position.unsqueeze(0), last)

    @torch.inference_mode()
    def copy(self, source: int, target: int, start: int, end: int) -> None:
        parts = [part for layer in self.layers.values() for part in layer]
        if parts:
            torch._foreach_copy_([x[target, start:end] for x in parts], [x[source, start:end] for x in parts])

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts))

    @torch.inference_mode()
    def select(self, outputs: Tensor, rows: list[int]) -> Tensor:
        return outputs[to_device([np.array(rows)], self.device)[0]]

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def clear(self) -> None:
        self.layers.clear()
        self.flat.clear()
        if self.graphs is not None:
            self.graphs.clear()

    def translate_error(self, error: Exception) -> Exception:
        return explain_error(error, self.device)

    @property
    def size(self) -> int:
        """The size of all keys and values in bytes, after the first step."""
        return sum(part.nbytes for layer in self.layers.values() for part in layer)

    def _store(self, layer: int, place: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values of a layer, and return all of its keys and values (see `PackedStep`)."""
        if layer not in self.layers:
            self._allocate(layer, key, value)
        for flat, new in zip(self.flat[layer], (key, value), strict=True):
            flat.index_copy_(0, place, new)
        return self.layers[layer]

    def _allocate(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Allocate the keys and values of a layer. They start as zeros, because masked entries must be finite too."""
        keys, values = (x.new_zeros(self.rows, self.room, *x.shape[1:]) for x in (key, value))
        self.layers[layer], self.flat[layer] = (keys, values), (keys.flatten(0, 1), values.flatten(0, 1))

    def _replay(self, graphs: StepGraphs, rows: Sequence[Read]) -> Tensor:
        """Return the outputs of a decoding step by a graph. Rows up to the shape of the graph repeat the first row."""
        count, keys = graphs.shape(len(rows), max(start for _, start, _ in rows) + 1)
        slots, position, ids = (padded(values, count) for values in zip(*((s, p, new[0]) for s, p, new in rows), strict=True))
        inputs = [ids, position, slots * self.room + position, slots]
        if self.paged:
            inputs += [position + 1, np.arange(count + 1), np.append(0, np.cumsum(position + 1))]
        else:
            queries = np.zeros(self.rows, np.int64)
            queries[slots[: len(rows)]] = np.arange(len(rows))
            inputs.append(queries)
        return graphs.run((count, keys), np.concatenate(inputs), len(rows))

    def _decode(self, inputs: Tensor, count: int, keys: int) -> Tensor:
        """Return the outputs [count, ...] of a decoding step with the inputs of `_replay`."""
        ids, position, place, slots = inputs[: 4 * count].view(4, count)
        last = torch.arange(count, device=self.device)
        step: Step
        if self.paged:
            table, (ends, starts, key_starts) = slots.int(), inputs[4 * count :].int().split([count, count + 1, count + 1])
            step = PagedStep(place, position, table.unsqueeze(1), ends, starts, key_starts, 1, keys, self._store)
        elif SPREAD * count >= self.rows:  # all slots, without a copy of their keys and values
            group = Group(slice(0, self.rows), self.rows, keys, False, inputs[4 * count :].unsqueeze(1))
            step = PackedStep(place, position, [group], slots, self._store)
        else:
            step = PackedStep(place, position, [Group(slots, count, keys, False, slice(0, count))], None, self._store)
        with use_step(step):
            return self.forward(ids.unsqueeze(0), position.unsqueeze(0), last)

    def _pack(self, rows: Sequence[Read], outputs: Sequence[int]) -> tuple[Step, Tensor, Tensor]:
        packed = Packed(rows, outputs, self.room)
        if self.paged:
            return pack_paged(packed, self.device, self._store)
        options = {"length": self.length, "key_multiple": self.key_multiple, "max_distance": self.max_distance}
        return pack_groups(packed, self.device, self._store, **options)


def explain_error(error: Exception, device: torch.device) -> Exception:
    """Return a ModelError with advice for an out-of-memory error, and any other error unchanged."""
    if not isinstance(error, torch.OutOfMemoryError):
        return error
    return ModelError(
        f"{device} ran out of memory in a step of the model. Load the model with fewer slots or another dtype. ({error})"
    )
