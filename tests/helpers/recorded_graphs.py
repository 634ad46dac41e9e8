"""A stand-in for CUDA graphs on the CPU: it records operations with their tensors, and repeats exactly these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cards.backends.local import graphs, proof

SHAPED_BY_DATA = (torch.ops.aten.nonzero.default, torch.ops.aten.masked_select.default)


def waits(func: Any, args: Any) -> bool:
    """Return whether the host needs a result of this operation, so that it waits for a device."""
    by_mask = func is torch.ops.aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
    return torch.Tag.data_dependent_output in func.tags or func in SHAPED_BY_DATA or by_mask


class Recorder(TorchDispatchMode):
    """Records operations. One that waits for the device fails, as it does while a CUDA stream is captured."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if waits(func, args):
            raise RuntimeError("operation not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        """Repeat the operations. Results go to the tensors of the recording, as kernels write to fixed addresses."""
        for func, args, kwargs, out in self.calls:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


class RecordedGraphs:
    """Counts the graphs and their replays."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def capture(self, run: Callable[[], object], device: torch.device, pool: Any = None) -> tuple[Callable[[], object], Any]:
        recorder = Recorder()
        with recorder:
            run()
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            recorder.replay()

        return replay, "pool"


def use_recorded_graphs(patched: pytest.MonkeyPatch, fewest_keys: int = 16) -> RecordedGraphs:
    """Give the CPU graphs, with small steps of the number of keys, so that short texts need several graphs."""
    made = RecordedGraphs()
    patched.setattr(graphs, "capture", made.capture)
    patched.setattr(graphs, "FEWEST_KEYS", fewest_keys)
    patched.setattr(proof, "has_graphs", lambda device: True)
    return made
