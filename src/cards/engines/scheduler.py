"""Continuous batching: one forward step advances every row by its own number of tokens; rows come and go at any step."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cards.backends.local.worker import Worker, in_words
from cards.engines.base import tell
from cards.engines.slots import Slots
from cards.errors import ModelError, PromptError
from cards.usage import Account, current_account

log = logging.getLogger("cards")


class Job:
    """What one caller waits for; it owns rows. Cancelling it frees them at the next step, pausing it stops their reading.

    Its costs go to the account of the caller that makes it.
    """

    def __init__(self) -> None:
        self.account = current_account()
        self.cancelled = False
        self.paused = False

    def fail(self, error: BaseException) -> None:
        """Tell the caller that the job cannot be done."""

    def abort(self, error: BaseException) -> None:
        """Free the job's rows and tell its caller why."""
        self.cancelled = True
        self.fail(error)


class Question(Job):
    """A job with one result, which its caller awaits."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()

    def answer(self, result: Any) -> None:
        self._settle(lambda: self.future.set_result(result))

    def fail(self, error: BaseException) -> None:
        self._settle(lambda: self.future.set_exception(error))

    def _settle(self, how: Callable[[], None]) -> None:
        tell(self.loop, lambda: None if self.future.done() else how())


class Row:
    """One sequence in the works: all `tokens` must be in its slot; then it is consumed, with the model's output.

    At most `keep` leading tokens need no reading; `start` is the output after them where it is known.
    """

    __slots__ = ("done", "given", "job", "keep", "slot", "start", "tokens")

    def __init__(self, job: Job, tokens: list[int], start: Tensor | None = None) -> None:
        self.job, self.tokens, self.start = job, tokens, start
        self.keep = len(tokens) - (start is None)
        self.given = len(tokens)  # read, not drawn
        self.slot = -1
        self.done = False

    def wanted(self, end: int, count: int) -> int:
        """Of how many tokens, the last of the `count` that end at `end`, the model's output is wanted."""
        return 1


class Tail(Row):
    """A row whose last `last` outputs are wanted; its job's `finish` gets them [last, ...] when all are there."""

    __slots__ = ("last", "outputs")

    def __init__(self, job: Job, tokens: list[int], last: int) -> None:
        super().__init__(job, tokens)
        self.last, self.outputs = last, list[Tensor]()
        self.keep = len(tokens) - last

    def wanted(self, end: int, count: int) -> int:
        return max(1, min(count, end - self.keep))

    def take(self, outputs: Tensor, end: int) -> None:
        if end > self.keep:
            self.outputs.append(outputs)
        if end == len(self.tokens):
            self.done = True
            self.finish(torch.cat(self.outputs))

    def finish(self, outputs: Tensor) -> None:
        """What becomes of the outputs."""


class Pace:
    """Learns what one more row adds to a step, as a share of the step's fixed cost: least squares over recent steps."""

    def __init__(self, guess: float = 0.085, memory: float = 0.99) -> None:
        self.guess, self.memory = guess, memory
        self.sums = (0.0, 0.0, 0.0, 0.0, 0.0)  # of 1, rows, seconds, rows^2, rows * seconds

    def observe(self, rows: int, seconds: float) -> None:
        new = (1.0, rows, seconds, rows * rows, rows * seconds)
        self.sums = tuple(self.memory * a + b for a, b in zip(self.sums, new, strict=True))  # type: ignore[assignment]

    @property
    def row_cost(self) -> float:
        n, x, y, xx, xy = self.sums
        spread = n * xx - x * x
        if n < 20 or spread < 0.1 * x * x:  # too few steps, or all of one size
            return self.guess
        slope = (n * xy - x * y) / spread
        fixed = (y - slope * x) / n
        return min(1.0, max(0.001, slope / fixed)) if slope > 0 and fixed > 0 else self.guess


Consume = Callable[[Sequence[Row], Tensor], Sequence[Row]]


class Scheduler:
    """Runs rows through slots. `submit` is thread-safe; everything else happens in the device's worker thread.

    consume(rows, outputs [rows, ...]) gets the rows that are fully read: it extends their tokens or marks them done, and
    returns new rows, which are admitted first. `budget` bounds the tokens of one step, so that a long prompt does not hold
    up the others.
    """

    def __init__(self, slots: Slots, consume: Consume, budget: int = 1024) -> None:
        self.slots, self.consume, self.budget = slots, consume, budget
        self.inbox: deque[tuple[Callable[[], Sequence[Row]], Job | None]] = deque()
        self.waiting: deque[Row] = deque()
        self.active: list[Row] = []
        self.pace = Pace()
        self.closed = False
        self.worker = Worker.on(slots.device)
        self.worker.add(self)

    def submit(self, begin: Callable[[], Sequence[Row]], job: Job | None = None) -> None:
        """Have the worker call `begin`, before its next step, and admit the rows it returns; what it raises fails the job."""
        if self.closed:
            raise ModelError("This model was closed; load it again to use it.")
        self.inbox.append((begin, job))
        self.worker.wake(answers=True)

    def close(self) -> None:
        """Free the cache; what is in the works fails."""
        self.closed = True
        self._abort_all(lambda: ModelError("The model was closed while it served this request."))
        self.slots.caches.clear()

    def forget(self) -> None:
        """Drop what the slots hold, before the next step; rows in the works read their tokens again."""
        self.do(self.slots.forget)

    def do(self, action: Callable[[], object]) -> None:
        """Have the worker do something before its next step."""

        def begin() -> Sequence[Row]:
            action()
            return ()

        self.submit(begin)

    @property
    def urgent(self) -> bool:
        """Whether a reward waits for this model."""
        jobs = [job for _, job in list(self.inbox)] + [row.job for row in self.active]
        return any(job is not None and job.account.role == "rm" for job in jobs)

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        if self.inbox or any(row.job.cancelled or not row.job.paused for row in self.active):
            return True
        return bool(self.waiting) and bool(self.slots.idle.any())

    def step(self) -> None:
        """Drop the cancelled, admit the waiting, read, consume."""
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
            if output.is_cuda:
                torch.cuda.synchronize(output.device)
            self._account(batch, time.perf_counter() - start)  # before anybody learns of the outcome
            rows, places = [], []
            for (row, _), end, place, count in zip(batch, ends, np.cumsum(wanted).tolist(), wanted, strict=True):
                if isinstance(row, Tail):
                    row.take(output[place - count : place], end)
                elif end == len(row.tokens):
                    rows.append(row)
                    places.append(place - 1)
            if rows:
                self._consume(rows, output if len(rows) == len(output) else output[places])
        except Exception as error:
            log.exception("A step of the model failed; its requests fail with it.")
            self._abort_all(partial(in_words, error, self.slots.device))
            self.slots.forget()
        self.retire()

    def _begin(self) -> None:
        while self.inbox:
            begin, job = self.inbox.popleft()
            try:
                self.waiting.extend(begin())
            except Exception as error:
                if job is None:
                    raise
                job.abort(error)

    def _abort_all(self, error: Callable[[], Exception]) -> None:
        """Each job gets an error of its own, for a request notes its answer so far on it."""
        for job in {row.job for row in (*self.active, *self.waiting)}:
            job.abort(error())

    def retire(self) -> None:
        """Free the slots of rows that are done or cancelled."""
        for row in self.active:
            if row.done or row.job.cancelled:
                self.slots.release(row.slot)
        self.active = [row for row in self.active if not (row.done or row.job.cancelled)]

    def _admit(self) -> None:
        fresh: list[Row] = []
        later: list[Row] = []  # what they begin with is just being read for another
        while self.waiting:
            row = self.waiting.popleft()
            if row.job.cancelled:
                continue
            if len(row.tokens) > self.slots.length:
                row.job.abort(
                    PromptError(f"A text of {len(row.tokens)} tokens is longer than the context, {self.slots.length}.")
                )
            elif self.slots.coming(row.tokens):
                later.append(row)
            elif (place := self.slots.acquire(row.tokens, row.keep, row.job.account.ticket.id)) is None:
                later.append(row)
                break
            else:
                row.slot, held = place
                row.job.account.add(cached_tokens=held)
                self.active.append(row)
                if held == len(row.tokens):
                    fresh.append(row)
        self.waiting.extendleft(reversed(later))
        if fresh:
            self._consume(fresh, torch.stack([row.start for row in fresh if row.start is not None]))

    def _consume(self, rows: Sequence[Row], output: Tensor) -> None:
        self.waiting.extendleft(reversed(self.consume(rows, output)))

    def _batch(self) -> list[tuple[Row, list[int]]]:
        """Rows and the tokens they read now: one each where decoding, then prompts, first come first served."""
        held, left = self.slots.held, self.budget
        batch = []
        pending = [(row, len(row.tokens) - int(held[row.slot])) for row in self.active if not (row.done or row.job.paused)]
        for row, count in sorted(pending, key=lambda item: item[1] > 1):
            if (count := min(count, left)) > 0:
                left -= count
                batch.append((row, row.tokens[held[row.slot] : held[row.slot] + count]))
        return sorted(batch, key=lambda item: item[0].slot)

    def _account(self, batch: Sequence[tuple[Row, list[int]]], seconds: float) -> None:
        for row, new in batch:
            row.job.account.add(flops=self.slots.flops * len(new))
        if all(len(new) == 1 for _, new in batch):  # a prompt's tokens are cheaper by the dozen
            self.pace.observe(len(batch), seconds)
        read: dict[Account, int] = {}  # a request's jobs in one role share an account, for which a step counts once
        for row, new in batch:
            account, end = row.job.account, int(self.slots.held[row.slot])
            given = end if account.role == "rm" else min(end, row.given)
            read[account] = read.get(account, 0) + max(0, given - (end - len(new)))
        for account, tokens in read.items():
            account.add(steps=1, prefill_tokens=tokens, seconds=seconds)
