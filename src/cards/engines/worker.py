"""The one thread that runs models on a device."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, ClassVar, Protocol, TypeVar

T = TypeVar("T")
PATIENCE = 0.002  # seconds to wait for callers' answers to what was handed out, before a step without them


class Steps(Protocol):
    """Something with work for the worker thread."""

    @property
    def busy(self) -> bool: ...

    @property
    def urgent(self) -> bool: ...

    def step(self) -> None: ...


class DeviceWorker:
    """The one thread that runs models on a device: urgent work (for rewards) first, since requests wait for rewards."""

    _all: ClassVar[dict[Hashable, DeviceWorker]] = {}

    def __init__(self) -> None:
        self.steppers: list[weakref.ref[Steps]] = []  # weak, so that a model that nobody uses any more is freed
        self.condition = threading.Condition()
        self.thread: threading.Thread | None = None
        self.stopped = False
        self.calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self.asked = 0  # results handed out since the last step ...
        self.answered = 0  # ... and calls that came since, so that one step can serve all of them

    @classmethod
    def on(cls, device: Hashable) -> DeviceWorker:
        """The worker of a device, which has its number where there are several (`torch.device("cuda:0")`)."""
        return cls._all.setdefault(device, cls())

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in the thread of the worker and wait for it.

        Everything that computes on the CPU belongs there, including loading: OpenMP keeps a team of threads for each thread
        that computes. Once the teams have more threads than the machine has cores, they sleep between operations.
        """
        if threading.current_thread() is self.thread:
            return function()
        future: Future[T] = Future()
        self.calls.append((function, future))
        self.wake()
        return future.result()

    def add(self, stepper: Steps) -> None:
        with self.condition:
            alive = [s for ref in self.steppers if (s := ref()) is not None]
            self.steppers = [weakref.ref(s) for s in [*alive, stepper]]

    def wake(self, answers: bool = False) -> None:
        """Make the thread look for work. `answers`: a caller has come back for whom a step waits."""
        with self.condition:
            self.answered += answers
            if self.thread is None or not self.thread.is_alive():
                self.thread = threading.Thread(target=self._run, name="cards-worker", daemon=True)
                self.thread.start()
            self.condition.notify()

    @classmethod
    def stop_all(cls) -> None:
        """Let the threads finish their step and end, so that none is inside a model when the interpreter exits."""
        for worker in cls._all.values():
            with worker.condition:
                worker.stopped = True
                worker.condition.notify()
            if worker.thread is not None:
                worker.thread.join(timeout=5)

    @staticmethod
    def _answer(function: Callable[[], T], future: Future[T]) -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    def _busy(self) -> list[Steps]:
        return [s for ref in self.steppers if (s := ref()) is not None and s.busy]

    def _run(self) -> None:
        while True:
            with self.condition:
                self.condition.wait_for(lambda: self.stopped or self.calls or self._busy())
                if self.stopped:
                    return
                self.condition.wait_for(lambda: self.answered >= self.asked, PATIENCE)
                self.answered = self.asked = 0
            while self.calls:
                self._answer(*self.calls.popleft())
            busy = sorted(self._busy(), key=lambda stepper: not stepper.urgent)
            while busy:
                busy.pop(0).step()


atexit.register(DeviceWorker.stop_all)
