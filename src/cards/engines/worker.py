"""The worker thread that runs all models on a device."""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, ClassVar, Protocol, TypeVar

from cards.threads import Threads

T = TypeVar("T")
PATIENCE = 0.002, 0.02  # seconds, least and most, that a step waits for expected calls
SHARE = 0.05  # of the time of the last step, which a late call has to wait for


class Stepper(Protocol):
    """An object with work for the worker thread, which is done in steps."""

    @property
    def busy(self) -> bool:
        """Whether there is work for a step."""
        ...

    @property
    def urgent(self) -> bool:
        """Whether its steps come before those of others."""
        ...

    def step(self) -> None:
        """Do one step of the work."""
        ...

    def interrupt(self) -> None:
        """End the current step early, if that is possible. No more steps follow."""
        ...


class DeviceWorker:
    """The worker thread of a device. Urgent work (for rewards) comes first, because requests wait for rewards."""

    _all: ClassVar[dict[str, DeviceWorker]] = {}

    def __init__(self) -> None:
        self.steppers: list[weakref.ref[Stepper]] = []  # weak, so that unused models are freed
        self.condition = threading.Condition()
        self.thread: threading.Thread | None = None
        self.stopped = False
        self.calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self.expected = 0  # calls that are likely to follow the results delivered since the last step
        self.arrived = 0  # expected calls that have arrived, so that one step can serve all of them
        self.threads: Threads | None = None
        self.setters: dict[str, Callable[[int], object]] = {}  # by library
        self._number = 0
        self._patience = PATIENCE[0]

    @classmethod
    def on(cls, device: Hashable) -> DeviceWorker:
        """Return the worker of a device, by its name (`cpu`). Name one of several devices by its number (`cuda:0`)."""
        return cls._all.setdefault(str(device), cls())

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in the worker thread and return its result.

        All computation on the CPU belongs there, including loading, because OpenMP keeps a team of threads for each thread that
        computes. If the teams have more threads than the machine has cores, they sleep between operations.
        """
        if threading.current_thread() is self.thread:
            return function()
        future: Future[T] = Future()
        self.calls.append((function, future))
        self.wake()
        return future.result()

    def add(self, stepper: Stepper) -> None:
        """Run the steps of an object until it is freed."""
        with self.condition:
            self.steppers = [weakref.ref(s) for s in [*self._alive(), stepper]]

    def use(self, threads: Threads, **setters: Callable[[int], object]) -> None:
        """Compute with these CPU threads. Each setter sets their number for a library, in the worker thread before a step."""
        self.threads, self._number = threads, 0
        self.setters |= setters

    def _set_threads(self) -> None:
        if self.threads is not None and (number := self.threads.update()) != self._number:
            for setter in self.setters.values():
                setter(number)
            self._number = number

    def wake(self, expected: bool = False) -> None:
        """Make the thread check for work. `expected`: count the arrival of a call that a step may wait for."""
        with self.condition:
            self.arrived += expected
            if self.thread is None or not self.thread.is_alive():
                self.thread = threading.Thread(target=self._run, name="cards-worker", daemon=True)
                self.thread.start()
            self.condition.notify()

    @classmethod
    def stop_all(cls) -> None:
        """Stop all threads after their current step, so that none runs a model when the interpreter exits."""
        for worker in cls._all.values():
            with worker.condition:
                worker.stopped = True
                worker.condition.notify()
            for stepper in worker._alive():
                stepper.interrupt()
            if worker.thread is not None:
                worker.thread.join(timeout=5)

    @staticmethod
    def _resolve(function: Callable[[], T], future: Future[T]) -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    def _alive(self) -> list[Stepper]:
        return [s for ref in self.steppers if (s := ref()) is not None]

    def _busy(self) -> list[Stepper]:
        return [s for s in self._alive() if s.busy]

    def _run(self) -> None:
        while True:
            with self.condition:
                self.condition.wait_for(lambda: self.stopped or self.calls or self._busy())
                if self.stopped:
                    return
                self.condition.wait_for(lambda: self.arrived >= self.expected, self._patience)
                self.arrived = self.expected = 0
            self._set_threads()
            while self.calls:
                self._resolve(*self.calls.popleft())
            start = time.monotonic()
            busy = sorted(self._busy(), key=lambda stepper: not stepper.urgent)
            while busy:
                busy.pop(0).step()
            self._patience = min(max(SHARE * (time.monotonic() - start), PATIENCE[0]), PATIENCE[1])


atexit.register(DeviceWorker.stop_all)
