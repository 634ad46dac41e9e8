"""Models of this process compute with the chosen number of CPU threads, and leave the caller's own number alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from helpers.random_models import letter_engine

from cards import Decoder
from cards.backends.local import loading
from cards.backends.local.engine import TransformersEngine
from cards.engines.scheduler import Row
from cards.engines.worker import DeviceWorker
from cards.errors import SettingError
from cards.methods import Vanilla
from cards.registry import load_engine

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def worker() -> Iterator[DeviceWorker]:
    """The worker of the CPU, which has one thread again after the test."""
    worker = DeviceWorker.on(CPU)
    worker.threads = None
    yield worker
    torch.set_num_threads(1)
    worker.threads = None
    loading.worker_on(CPU)


async def threads_of_steps(engine: TransformersEngine) -> int:
    """The number of threads during a step of the engine."""
    seen: list[int] = []
    look = engine.scheduler.look

    def seeing(rows: Sequence[Row], logits: torch.Tensor) -> Sequence[Any]:
        seen.append(torch.get_num_threads())
        return look(rows, logits)

    engine.scheduler.look = seeing
    await Decoder(engine, None, Vanilla()).agenerate("ab", max_tokens=2)
    await engine.aclose()
    return max(seen)


async def test_a_given_number_of_threads_holds_for_steps_alone() -> None:
    letters = letter_engine(slots=2)
    engine = TransformersEngine(letters.model, letters.tokenizer, slots=2, threads=3)
    assert await threads_of_steps(engine) == 3
    assert torch.get_num_threads() == 1
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == 1


async def test_a_model_loaded_later_without_a_number_keeps_it() -> None:
    letters = letter_engine(slots=2)
    TransformersEngine(letters.model, letters.tokenizer, slots=2, threads=3)
    assert await threads_of_steps(letter_engine(slots=2)) == 3


@pytest.mark.parametrize(("set_before", "usable", "expected"), [(2, 4, 2), (4, 2, 2), (3, 3, 3)])
async def test_the_default_is_the_lower_of_torchs_number_and_the_usable_one(
    set_before: int, usable: int, expected: int, monkeypatch: pytest.MonkeyPatch, worker: DeviceWorker
) -> None:
    monkeypatch.setattr(loading, "usable_threads", lambda: usable)
    torch.set_num_threads(set_before)
    letter_engine(slots=2)
    assert worker.threads is not None
    assert worker.threads.most == expected
    assert torch.get_num_threads() == set_before


async def test_fewer_threads_are_used_while_cpus_are_busy(worker: DeviceWorker) -> None:
    engine = letter_engine(slots=2)
    numbers = iter([2, *[1] * 99])

    class Busy:
        def update(self) -> int:
            return next(numbers)

    worker.use(Busy(), torch=lambda number: applied.append((number, threading.current_thread())))  # type: ignore[arg-type]
    applied: list[tuple[int, object]] = []
    await Decoder(engine, None, Vanilla()).agenerate("ab", max_tokens=9)
    assert applied == [(2, worker.thread), (1, worker.thread)]  # set once per change, in the worker
    await engine.aclose()


def test_impossible_numbers_and_models_elsewhere_are_refused() -> None:
    letters = letter_engine(slots=2)
    with pytest.raises(SettingError, match="threads must be at least 1, got 0"):
        TransformersEngine(letters.model, letters.tokenizer, threads=0)
    with pytest.raises(SettingError, match=r"The server chooses .*threads"):
        load_engine("http://localhost:1/v1", threads=2)
