"""Continuous batching: rows join and leave the batch between forward steps."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from cards.engines.base import call_in_loop
from cards.engines.slots import Outputs, Slots
from cards.engines.worker import DeviceWorker
from cards.errors import ModelError, PromptTooLongError
from cards.parts import Composite
from cards.usage import Account, current_account

log = logging.getLogger("cards")


class PendingCall:
    """A call that its caller waits for, with the rows that serve it.

    The next step frees the rows of a cancelled call, and skips those of a paused call. Costs go to the caller's account.
    """

    def __init__(self) -> None:
        self.account = current_account()
        self.cancelled = False
        self.paused = False

    def fail(self, error: BaseException) -> None:
        """Raise an error in the caller."""

    def abort(self, error: BaseException) -> None:
        """Free the rows of the call and raise an error in the caller."""
        self.cancelled = True
        self.fail(error)


class PendingResult(PendingCall):
    """A call whose caller awaits one result."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()

    async def wait(self) -> Any:
        """Wait for the result. If the waiting is cancelled, the call is cancelled too."""
        try:
            return await self.future
        finally:
            self.cancelled = True

    def resolve(self, result: Any) -> None:
        """Return a result to the caller."""
        self._settle(lambda: self.future.set_result(result))

    def fail(self, error: BaseException) -> None:
        self._settle(lambda: self.future.set_exception(error))

    def _settle(self, set_outcome: Callable[[], None]) -> None:
        call_in_loop(self.loop, lambda: None if self.future.done() else set_outcome())


class Row:
    """A sequence of tokens to read. Once all of them are in its cache slot, it is consumed with the model's output.

    At most `keep` leading tokens can come from the cache. `start` is the output [1, ...] after all tokens, if it is known.
    """

    __slots__ = ("call", "done", "given", "keep", "slot", "start", "tokens")

    def __init__(self, call: PendingCall, tokens: list[int], start: Outputs | None = None) -> None:
        self.call, self.tokens, self.start = call, tokens, start
        self.keep = len(tokens) - (start is None)
        self.given = len(tokens)  # read, not drawn
        self.slot = -1
        self.done = False

    def wanted(self, end: int, count: int) -> int:
        """Return how many outputs are needed, at the last of the `count` tokens that end at position `end`."""
        return 1


class Tail(Row):
    """A row whose last `last` outputs are needed. `finish` gets them as one array [last, ...]."""

    __slots__ = ("finish", "outputs")

    def __init__(
        self, call: PendingCall, tokens: list[int], given: int, last: int, finish: Callable[[Outputs], object]
    ) -> None:
        super().__init__(call, tokens)
        self.given, self.keep, self.finish = given, len(tokens) - last, finish
        self.outputs: list[Outputs] = []

    def wanted(self, end: int, count: int) -> int:
        return max(1, min(count, end - self.keep))

    def take(self, outputs: Outputs, end: int) -> None:
        """Store the outputs of a step that read the tokens up to position `end`."""
        if end > self.keep:
            self.outputs.append(outputs)
        self.done = end == len(self.tokens)


class Pace:
    """A least-squares estimate, over recent steps, of the cost of a row relative to the fixed cost of a step."""

    def __init__(self, guess: float = 0.085, memory: float = 0.99) -> None:
        self.row_cost, self.memory = guess, memory  # the time that one more row adds to a step, as a fraction of the fixed time
        self.sums = (0.0, 0.0, 0.0, 0.0, 0.0)  # weighted sums of 1, rows, seconds, rows^2, rows * seconds

    def observe(self, rows: int, seconds: float) -> None:
        """Add a measured step. While the numbers of rows are too similar, the last estimate stays."""
        new = (1.0, rows, seconds, rows * rows, rows * seconds)
        self.sums = tuple(self.memory * a + b for a, b in zip(self.sums, new, strict=True))  # type: ignore[assignment]
        n, x, y, xx, xy = self.sums
        spread = n * xx - x * x
        if n < 20 or spread < 0.1 * x * x:
            return
        slope = (n * xy - x * y) / spread
        fixed = (y - slope * x) / n
        if slope > 0 and fixed > 0:
            self.row_cost = min(1.0, max(0.001, slope / fixed))


Look = Callable[[Sequence[Row], Outputs], Sequence[Any]]
Consume = Callable[[Sequence[Row], Outputs, Sequence[Any]], Sequence[Row]]


class Scheduler(Composite):
    """Runs rows through cache slots. `submit` is thread-safe; everything else runs in the worker thread of the device.

    `look(rows, outputs [rows, ...])` gets the rows that are completely read, and returns what it needs of each output. It is
    the only part of a step that waits for the device. Then `consume(rows, outputs, looks)` extends their tokens or marks them
    done, and returns new rows, which are admitted first. `budget` is the maximum number of tokens of a step. It prevents long
    prompts from delaying other requests.
    """

    def __init__(self, slots: Slots, look: Look, consume: Consume, budget: int = 1024) -> None:
        self.slots, self.look, self.consume, self.budget = slots, look, consume, budget
        self.inbox: deque[tuple[Callable[[], Sequence[Row]], PendingCall | None]] = deque()
        self.waiting: deque[Row] = deque()
        self.active: list[Row] = []
        self.pace = Pace()
        self.closed = False
        self.worker = DeviceWorker.on(slots.cache.device)
        self.worker.add(self)

    def submit(self, begin: Callable[[], Sequence[Row]], call: PendingCall | None = None) -> None:
        """Call `begin` in the worker before its next step and admit the rows that it returns.

        If `begin` raises an error, the call fails with it. Raises ModelError if the model is closed.
        """
        if self.closed:
            raise ModelError("The model is closed: load it again to use it.")
        self.inbox.append((begin, call))
        self.worker.wake(expected=True)

    async def settle(self) -> None:
        """Wait until the slots of cancelled rows are free and their usage is recorded."""
        if not self.closed:
            settled = PendingResult()
            self.do(self.retire)
            self.do(lambda: settled.resolve(None))
            await settled.wait()

    async def aclose(self) -> None:
        """Free the cache. Calls in progress fail with ModelError."""
        self.interrupt()
        self._abort_all(lambda: ModelError("The model was closed during this request: load it again and repeat the request."))
        self.slots.cache.clear()

    def interrupt(self) -> None:
        """End the current step early, if the back end can. The model is closed."""
        self.closed = True
        self.slots.cache.interrupt()

    def forget(self) -> None:
        """Clear the slots before the next step. Active rows then read their tokens again."""
        self.do(self.slots.forget)

    def do(self, action: Callable[[], object]) -> None:
        """Run an action in the worker before its next step."""

        def begin() -> Sequence[Row]:
            action()
            return ()

        self.submit(begin)

    @property
    def urgent(self) -> bool:
        """Whether a reward waits for this model."""
        calls = [call for _, call in list(self.inbox)] + [row.call for row in self.active]
        return any(call is not None and call.account.role == "rm" for call in calls)

    @property
    def busy(self) -> bool:
        """Whether there is work for a step."""
        if self.inbox or any(row.call.cancelled or not row.call.paused for row in self.active):
            return True
        return bool(self.waiting) and bool(self.slots.idle.any())

    def step(self) -> None:
        """Drop cancelled rows, admit waiting rows, read tokens, and consume rows that are complete."""
        try:
            self._begin()
            self.retire()
            self._admit()
            batch = self._batch()
            if not batch:
                return
            start = time.perf_counter()
            ends = [int(self.slots.held[row.slot]) + len(new) for row, new in batch]
            wanted = [row.wanted(end, len(new)) for (row, new), end in zip(batch, ends, strict=True)]
            output = self.slots.read([(row.slot, new) for row, new in batch], wanted)
            stops = np.cumsum(wanted).tolist()
            complete = [end == len(row.tokens) and not isinstance(row, Tail) for (row, _), end in zip(batch, ends, strict=True)]
            rows = [row for (row, _), whole in zip(batch, complete, strict=True) if whole]
            looks: Sequence[Any] = ()
            if rows:
                at = [stop - 1 for stop, whole in zip(stops, complete, strict=True) if whole]
                last = output if len(rows) == len(output) else self.slots.cache.select(output, at)
                looks = self.look(rows, last)
            else:
                self.slots.cache.wait()
            self._account(batch, time.perf_counter() - start)  # before callers see the outputs
            for (row, _), end, stop, count in zip(batch, ends, stops, wanted, strict=True):
                if isinstance(row, Tail):
                    part = output[stop - count : stop]
                    row.take(part if end == len(row.tokens) else self.slots.cache.join([part]), end)
                    if row.done:
                        row.finish(self.slots.cache.join(row.outputs))
            if rows:
                self._admit_next(self.consume(rows, last, looks))
        except Exception as error:
            if not self.closed:
                log.exception("A step of the model failed, and so did its requests.")
            self._abort_all(partial(self.slots.cache.translate_error, error))
            self.slots.forget()
        self.retire()

    def _begin(self) -> None:
        while self.inbox:
            begin, call = self.inbox.popleft()
            try:
                self.waiting.extend(begin())
            except Exception as error:
                if call is None:
                    raise
                call.abort(error)

    def _abort_all(self, error: Callable[[], Exception]) -> None:
        """Abort every call with its own error object, because a request attaches its incomplete response to it."""
        for call in {row.call for row in (*self.active, *self.waiting)}:
            call.abort(error())

    def retire(self) -> None:
        """Free the slots of rows that are done or cancelled."""
        for row in self.active:
            if row.done or row.call.cancelled:
                self.slots.release(row.slot)
        self.active = [row for row in self.active if not (row.done or row.call.cancelled)]

    def _admit(self) -> None:
        fresh: list[Row] = []
        later: list[Row] = []  # another row is reading their prefix now
        while self.waiting:
            row = self.waiting.popleft()
            if row.call.cancelled:
                continue
            if len(row.tokens) > self.slots.length:
                row.call.abort(
                    PromptTooLongError(
                        f"The text has {len(row.tokens)} tokens, but the context is {self.slots.length}: shorten it."
                    )
                )
            elif self.slots.will_hold_more(row.tokens):
                later.append(row)
            elif (acquired := self.slots.acquire(row.tokens, row.keep, row.call.account.ticket.id)) is None:
                later.append(row)
                break
            else:
                row.slot, held = acquired
                row.call.account.add(cached_tokens=held)
                self.active.append(row)
                if held == len(row.tokens):
                    fresh.append(row)
        self.waiting.extendleft(reversed(later))
        if fresh:
            outputs = self.slots.cache.join([row.start for row in fresh])
            self._admit_next(self.consume(fresh, outputs, self.look(fresh, outputs)))

    def _admit_next(self, rows: Sequence[Row]) -> None:
        self.waiting.extendleft(reversed(rows))

    def _batch(self) -> list[tuple[Row, list[int]]]:
        """Return rows and the tokens that they read in this step: decoding rows first, then prompts in order of arrival."""
        held, left = self.slots.held, self.budget
        batch = []
        pending = [(row, len(row.tokens) - int(held[row.slot])) for row in self.active if not (row.done or row.call.paused)]
        for row, count in sorted(pending, key=lambda item: item[1] > 1):
            if (count := min(count, left)) > 0:
                left -= count
                batch.append((row, row.tokens[held[row.slot] : held[row.slot] + count]))
        return sorted(batch, key=lambda item: item[0].slot)

    def _account(self, batch: Sequence[tuple[Row, list[int]]], seconds: float) -> None:
        for row, new in batch:
            row.call.account.add(flops=self.slots.cache.flops * len(new))
        if all(len(new) == 1 for _, new in batch):  # tokens of prompts are cheaper, so such steps would bias the estimate
            self.pace.observe(len(batch), seconds)
        read: dict[Account, int] = {}  # calls of a request in one role share an account; a step counts once for it
        for row, new in batch:
            account, end = row.call.account, int(self.slots.held[row.slot])
            given = end if account.role == "rm" else min(end, row.given)
            read[account] = read.get(account, 0) + max(0, given - (end - len(new)))
        for account, tokens in read.items():
            account.add(steps=1, prefill_tokens=tokens, seconds=seconds)
