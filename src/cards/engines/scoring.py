"""Scoring of texts by the outputs of a model: in cache slots that reuse prefixes, or in batches of complete texts."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from itertools import takewhile
from typing import cast

import numpy as np

from cards.engines.scheduler import PendingResult, Row, Scheduler
from cards.engines.slots import Outputs, Slots
from cards.engines.worker import DeviceWorker
from cards.parts import Composite

Combine = Callable[[Outputs], list[float]]  # outputs of the model [rows, labels] -> one reward per row


class PendingScores(PendingResult):
    """A call that waits for the rewards of several texts."""

    def __init__(self, rows: Sequence[list[int]]) -> None:
        super().__init__()
        self.rows = rows
        self.then: list[Row] = []
        self.rewards: dict[int, float] = {}

    def deliver(self, number: int, reward: float) -> bool:
        """Store a reward. Return whether it was the last one, in which case the caller gets all of them."""
        self.rewards[number] = reward
        if len(self.rewards) < len(self.rows):
            return False
        self.resolve([self.rewards[i] for i in range(len(self.rows))])
        return True


class TextRow(Row):
    """A row with a text to score."""

    __slots__ = ("number",)

    def __init__(self, call: PendingScores, number: int, tokens: list[int]) -> None:
        super().__init__(call, tokens)
        self.number = number


class SlotScorer(Composite):
    """A scorer for causal models in cache slots, which reads only the tokens that no slot holds."""

    def __init__(self, slots: Slots, combine: Combine, budget: int = 1024) -> None:
        self.scheduler = Scheduler(slots, lambda rows, outputs: combine(outputs), self._consume, budget)
        self.parts = (self.scheduler,)

    async def score(self, rows: Sequence[list[int]]) -> list[float]:
        pending = PendingScores(rows)
        self.scheduler.submit(lambda: self._begin(pending), pending)
        return cast("list[float]", await pending.wait())

    def _begin(self, pending: PendingScores) -> list[Row]:
        """Return a row for each text. If texts share a prefix that no slot holds, return one row for the prefix first."""
        texts: list[Row] = [TextRow(pending, i, row) for i, row in enumerate(pending.rows)]
        if len(texts) > 1:
            shared = _common_prefix(pending.rows)
            if self.scheduler.slots.match(np.array(shared, np.int64)).max() < len(shared):
                pending.then = texts
                return [Row(pending, shared)]
        return texts

    def _consume(self, rows: Sequence[Row], outputs: Outputs, rewards: Sequence[float]) -> list[Row]:
        admitted: list[Row] = []
        for row, reward in zip(rows, rewards, strict=True):
            row.done = True
            pending = cast(PendingScores, row.call)
            if isinstance(row, TextRow):
                self.scheduler.worker.expected += pending.deliver(row.number, reward)
            else:
                admitted += pending.then
        return admitted


class TextScorer(Composite):
    """A scorer for complete texts. A back end reads a batch of texts in `_outputs`, in the worker thread of `device`."""

    urgent = True
    batch_tokens = 8192

    def __init__(self, device: Hashable, combine: Combine, flops: float) -> None:
        self.combine, self.flops = combine, flops
        self.inbox: deque[PendingScores] = deque()
        self.worker = DeviceWorker.on(device)
        self.worker.add(self)

    @abstractmethod
    def _outputs(self, rows: Sequence[list[int]]) -> Outputs:
        """Return the outputs [texts, labels] of the model."""

    def translate_error(self, error: Exception) -> Exception:
        """Return the error to show to users for an error of `_outputs`."""
        return error

    @property
    def busy(self) -> bool:
        return bool(self.inbox)

    async def score(self, rows: Sequence[list[int]]) -> list[float]:
        pending = PendingScores(rows)
        self.inbox.append(pending)
        self.worker.wake()
        return cast("list[float]", await pending.wait())

    def interrupt(self) -> None:
        """Let the current step finish."""

    def step(self) -> None:
        """Score all waiting texts."""
        waiting = [self.inbox.popleft() for _ in range(len(self.inbox))]
        texts = [TextRow(pending, i, row) for pending in waiting for i, row in enumerate(pending.rows)]
        texts = sorted((t for t in texts if not t.call.cancelled), key=lambda t: len(t.tokens))
        while texts:
            batch = self._batch(texts)
            texts = texts[len(batch) :]
            self._score(batch)

    def _batch(self, texts: Sequence[TextRow]) -> Sequence[TextRow]:
        """Return the first of the texts (by rising length) that fit into one batch."""
        fitting = sum(len(text.tokens) * count <= self.batch_tokens for count, text in enumerate(texts, 1))
        return texts[: max(1, fitting)]

    def _score(self, batch: Sequence[TextRow]) -> None:
        """Score texts together. If that fails, score each alone, so that an error fails only the call with that text."""
        try:
            outputs = self._outputs([text.tokens for text in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].call.abort(self.translate_error(error))
            else:
                for text in batch:
                    self._score([text])
            return
        for text, reward in zip(batch, self.combine(outputs), strict=True):
            text.call.account.add(prefill_tokens=len(text.tokens), flops=self.flops * len(text.tokens))
            cast(PendingScores, text.call).deliver(text.number, reward)


def _common_prefix(rows: Sequence[list[int]]) -> list[int]:
    extremes = zip(min(rows), max(rows), strict=False)  # in lexicographic order
    return [low for low, _ in takewhile(lambda pair: pair[0] == pair[1], extremes)]
