"""CUDA graphs of decoding steps: the host launches one graph instead of several hundred kernels.

A graph has fixed shapes. So there is one for each number of rows and of keys, both rounded up, and it reads its inputs from
fixed tensors. Graphs are captured when they are first needed, and share one pool of memory and one tensor of outputs.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cards.backends.local.transfer import pinned

log = logging.getLogger("cards")

MOST = 64  # graphs; the least recently used one is dropped
FEWEST_KEYS = 256
ROUNDINGS, FLOOR = 8.0, 1e-5  # accepted relative difference from the step without a graph, in units of rounding, and at least

Build = Callable[[Tensor, int, int], Tensor]  # inputs, number of rows, number of keys -> outputs [rows, ...]


def has_graphs(device: torch.device) -> bool:
    """Return whether a device runs graphs."""
    return device.type == "cuda"


def capture(run: Callable[[], object], device: torch.device, pool: Any = None) -> tuple[Callable[[], object], Any]:
    """Return a function that repeats the operations of `run` on the same tensors, and the pool of memory that it uses.

    A pool is shared by graphs that never run at the same time.
    """
    graph = torch.cuda.CUDAGraph()
    with (
        torch.cuda.device(device),
        torch.cuda.graph(graph, pool=pool, stream=torch.cuda.Stream(device), capture_error_mode="thread_local"),
    ):
        run()
    return graph.replay, graph.pool()


@dataclass(slots=True)
class Graph:
    """A captured step: copy into `inputs`, call `replay`, read `outputs`."""

    inputs: Tensor
    outputs: Tensor
    replay: Callable[[], object]


@dataclass(slots=True)
class StepGraphs:
    """The graphs of one cache, used by the worker thread of its device.

    build(inputs, rows, keys) runs the model on one new token for each row. `slots` and `length` are those of the cache.
    """

    build: Build
    slots: int
    length: int
    device: torch.device
    graphs: OrderedDict[tuple[int, int], Graph] = field(default_factory=OrderedDict)
    outputs: Tensor | None = None  # [slots, ...]
    pool: Any = None

    def shape(self, rows: int, keys: int) -> tuple[int, int]:
        """Return the numbers of rows and keys of the graph for a step: the next powers of two, at most those of the cache."""
        return min(_power(rows), self.slots), min(max(_power(keys), FEWEST_KEYS), self.length)

    def run(self, shape: tuple[int, int], inputs: NDArray[np.int64], rows: int) -> Tensor:
        """Return the outputs [rows, ...] of a step with this shape. Raises an error if the step cannot be captured."""
        if (graph := self.graphs.get(shape)) is None:
            while len(self.graphs) >= MOST:
                self.graphs.popitem(last=False)
            graph = self.graphs[shape] = self._capture(shape, inputs)
        else:
            graph.inputs.copy_(pinned(inputs, self.device), non_blocking=True)
            graph.replay()
        self.graphs.move_to_end(shape)
        return graph.outputs[:rows]

    def clear(self) -> None:
        self.graphs.clear()
        self.outputs = self.pool = None

    def _capture(self, shape: tuple[int, int], array: NDArray[np.int64]) -> Graph:
        """Run a step without a graph, capture it, and compare the two."""
        inputs = pinned(array, self.device).to(self.device, copy=True)
        first = self.build(inputs, *shape)  # also loads kernels and allocates workspaces, which a capture must not
        if self.outputs is None or self.outputs.shape[1:] != first.shape[1:]:
            self.outputs = first.new_empty(self.slots, *first.shape[1:])
        outputs = self.outputs[: shape[0]]
        replay, self.pool = capture(lambda: outputs.copy_(self.build(inputs, *shape)), self.device, self.pool)
        replay()
        scale = first.double().norm().clamp(min=1e-9)
        error = float((outputs.double() - first.double()).norm() / scale)
        accepted = max(ROUNDINGS * torch.finfo(first.dtype).eps, FLOOR)
        if not error <= accepted:
            raise RuntimeError(f"its outputs differ by {error:.2g} (accepted: {accepted:.2g})")
        log.debug("Captured graph %d, for %d rows and %d keys", len(self.graphs) + 1, *shape)
        return Graph(inputs, outputs, replay)


def _power(number: int) -> int:
    """Return the smallest power of two that is at least the number."""
    return 1 << (number - 1).bit_length()


def padded(values: Sequence[int], count: int) -> NDArray[np.int64]:
    """Return the values, and the first of them again until there are `count`."""
    array = np.full(count, values[0], np.int64)
    array[: len(values)] = values
    return array
