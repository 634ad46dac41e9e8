"""How reward models read: causal ones in slots, of each text only what is new; others whole texts in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cards.backends.local.lean import lean
from cards.backends.local.loading import DUMMY_MASK, flops_per_token, slotted
from cards.backends.local.worker import Worker, in_words
from cards.engines.scheduler import Question, Row, Scheduler

Combine = Callable[[Tensor], list[float]]  # classifier outputs [rows, labels] to one reward a row


class Reader(Protocol):
    """Scores texts given as token ids."""

    async def score(self, rows: Sequence[list[int]]) -> list[float]: ...

    def forget(self) -> None: ...

    def close(self) -> None: ...


class Slotted:
    """Reads causal RMs in slots: of each text only what no slot holds."""

    def __init__(self, model: PreTrainedModel, combine: Combine, slots: int, context: int) -> None:
        mask = DUMMY_MASK.to(model.device)
        head = cast("torch.nn.Module", model.score)

        def output(input_ids: Tensor, position_ids: Tensor, last: Tensor) -> Tensor:
            hidden = model.base_model(
                input_ids=input_ids, position_ids=position_ids, attention_mask=mask, use_cache=False
            ).last_hidden_state
            return cast(Tensor, head(hidden[0, last]))

        def reference(ids: Tensor) -> Tensor:
            return cast(Tensor, head(model.base_model(ids).last_hidden_state[:, -1]))

        held = Worker.on(model.device).call(
            lambda: slotted(model, (lean(model, head, context), output), slots, context, reference)
        )
        self.scheduler = Scheduler(held, self._consume)
        self.combine = combine

    async def score(self, rows: Sequence[list[int]]) -> list[float]:
        reading = Reading(rows)
        self.scheduler.submit(lambda: self._begin(reading), reading)
        try:
            return cast("list[float]", await reading.future)
        finally:
            reading.cancelled = True

    def forget(self) -> None:
        self.scheduler.forget()

    def close(self) -> None:
        self.scheduler.close()

    def _begin(self, reading: Reading) -> list[Row]:
        """All texts; but where several share a prefix that no slot holds, that prefix first, once."""
        texts: list[Row] = [Text(reading, i, row) for i, row in enumerate(reading.rows)]
        if len(texts) > 1:
            shared = _common_prefix(reading.rows)
            if self.scheduler.slots.match(np.array(shared, np.int64)).max() < len(shared):
                reading.then = texts
                return [Row(reading, shared)]
        return texts

    def _consume(self, rows: Sequence[Row], outputs: Tensor) -> list[Row]:
        admitted: list[Row] = []
        for row, reward in zip(rows, self.combine(outputs), strict=True):
            row.done = True
            reading = cast(Reading, row.job)
            if isinstance(row, Text):
                self.scheduler.worker.asked += reading.deliver(row.number, reward)
            else:
                admitted += reading.then
        return admitted


class Reading(Question):
    """Texts to score, and the future of their rewards."""

    def __init__(self, rows: Sequence[list[int]]) -> None:
        super().__init__()
        self.rows = rows
        self.then: list[Row] = []
        self.rewards: dict[int, float] = {}

    def deliver(self, number: int, reward: float) -> bool:
        """Note a reward; with the last one, hand all of them out and return True."""
        self.rewards[number] = reward
        if len(self.rewards) < len(self.rows):
            return False
        self.answer([self.rewards[i] for i in range(len(self.rows))])
        return True


class Text(Row):
    """A text to score."""

    __slots__ = ("number",)

    def __init__(self, job: Reading, number: int, tokens: list[int]) -> None:
        super().__init__(job, tokens)
        self.number = number


class Padded:
    """Reads whole texts, in batches: encoders padded on the right under a mask, other models with texts of one length."""

    urgent = True
    batch_tokens = 8192

    def __init__(self, model: PreTrainedModel, combine: Combine, pad_id: int | None) -> None:
        self.model, self.combine = model, combine
        self.pads = not is_causal(model)
        self.pad_id = pad_id or 0
        self.flops = flops_per_token(model)
        self.inbox: deque[Reading] = deque()
        self.worker = Worker.on(model.device)
        self.worker.add(self)

    @property
    def busy(self) -> bool:
        return bool(self.inbox)

    async def score(self, rows: Sequence[list[int]]) -> list[float]:
        reading = Reading(rows)
        self.inbox.append(reading)
        self.worker.wake()
        try:
            return cast("list[float]", await reading.future)
        finally:
            reading.cancelled = True

    def forget(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is held."""

    def step(self) -> None:
        """Score all texts that wait."""
        readings = [self.inbox.popleft() for _ in range(len(self.inbox))]
        texts = [Text(reading, i, row) for reading in readings for i, row in enumerate(reading.rows)]
        texts = sorted((t for t in texts if not t.job.cancelled), key=lambda t: len(t.tokens))
        try:
            while texts:
                texts = texts[self._forward(texts) :]
        except Exception as error:
            for job in {text.job for text in texts}:
                job.fail(in_words(error, self.model.device))

    def _forward(self, texts: Sequence[Text]) -> int:
        """Score as many of the texts (by rising length) as one batch takes; returns how many."""
        longest, count = 0, 0
        for text in texts:
            longest = max(longest, len(text.tokens))
            if count and (longest * (count + 1) > self.batch_tokens or not (self.pads or longest == len(texts[0].tokens))):
                break
            count += 1
        batch = texts[:count]
        longest = len(batch[-1].tokens)
        ids = torch.full((count, longest), self.pad_id)
        mask = torch.zeros(count, longest, dtype=torch.long)
        for i, text in enumerate(batch):
            ids[i, : len(text.tokens)] = torch.tensor(text.tokens)
            mask[i, : len(text.tokens)] = 1
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        if self.pads:
            outputs = self.model(input_ids=ids, attention_mask=mask).logits
        else:  # the head sits at the last token: read there, not where the model thinks padding begins
            head = cast(torch.nn.Module, self.model.score)
            outputs = head(self.model.base_model(input_ids=ids).last_hidden_state[:, -1])
        for text, reward in zip(batch, self.combine(outputs), strict=True):
            text.job.account.add(prefill_tokens=len(text.tokens), flops=self.flops * len(text.tokens))
            cast(Reading, text.job).deliver(text.number, reward)
        return count


def is_causal(model: PreTrainedModel) -> bool:
    """Decoder classifiers put a head called `score` on the last token; encoders have a `classifier`."""
    return isinstance(getattr(model, "score", None), torch.nn.Module) and not model.config.is_encoder_decoder


def _common_prefix(rows: Sequence[list[int]]) -> list[int]:
    low, high = min(rows), max(rows)
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:length]
