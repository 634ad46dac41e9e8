"""Scoring of texts by reward models: causal models in cache slots, other models in padded batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from cards.backends.configuration import flops_per_token
from cards.backends.forms import TypedRow
from cards.backends.local.cache import explain_error
from cards.backends.local.lean import lean_forward
from cards.backends.local.proof import DUMMY_MASK, verified_slots
from cards.engines.scheduler import PendingResult, Row, Scheduler
from cards.engines.worker import DeviceWorker
from cards.parts import Composite

Combine = Callable[[Tensor], list[float]]  # classifier outputs [rows, labels] -> one reward per row


class SlotScorer(Composite):
    """A scorer for causal RMs in cache slots, which reads only the tokens that no slot holds."""

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

        verified = DeviceWorker.on(model.device).call(
            lambda: verified_slots(model, (lean_forward(model, head, context), output), slots, context, reference)
        )
        self.scheduler = Scheduler(verified, self._consume)
        self.parts, self.combine = (self.scheduler,), combine

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

    def _consume(self, rows: Sequence[Row], outputs: Tensor) -> list[Row]:
        admitted: list[Row] = []
        for row, reward in zip(rows, self.combine(outputs), strict=True):
            row.done = True
            pending = cast(PendingScores, row.call)
            if isinstance(row, TextRow):
                self.scheduler.worker.expected += pending.deliver(row.number, reward)
            else:
                admitted += pending.then
        return admitted


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


class PaddedScorer(Composite):
    """A scorer for complete texts in batches. Encoders get texts padded on the right, other models texts of equal length."""

    urgent = True
    batch_tokens = 8192

    def __init__(self, model: PreTrainedModel, combine: Combine, pad_id: int | None) -> None:
        self.model, self.combine = model, combine
        self.pads = not is_causal(model)
        self.pad_id = pad_id or 0
        self.typed = self.pads and (getattr(model.config, "type_vocab_size", None) or 0) > 1
        self.flops = flops_per_token(model)
        self.inbox: deque[PendingScores] = deque()
        self.worker = DeviceWorker.on(model.device)
        self.worker.add(self)

    @property
    def busy(self) -> bool:
        return bool(self.inbox)

    async def score(self, rows: Sequence[list[int]]) -> list[float]:
        pending = PendingScores(rows)
        self.inbox.append(pending)
        self.worker.wake()
        return cast("list[float]", await pending.wait())

    @torch.inference_mode()
    def step(self) -> None:
        """Score all waiting texts."""
        waiting = [self.inbox.popleft() for _ in range(len(self.inbox))]
        texts = [TextRow(pending, i, row) for pending in waiting for i, row in enumerate(pending.rows)]
        texts = sorted((t for t in texts if not t.call.cancelled), key=lambda t: len(t.tokens))
        while texts:
            batch = self._batch(texts)
            texts = texts[len(batch) :]
            self._score(batch)

    def _score(self, batch: Sequence[TextRow]) -> None:
        """Score texts together, or each alone if that fails: an error is one of its own text's call."""
        try:
            outputs = self._forward(batch)
        except Exception as error:
            if len(batch) == 1:
                batch[0].call.abort(explain_error(error, self.model.device))
            else:
                for text in batch:
                    self._score([text])
            return
        for text, reward in zip(batch, self.combine(outputs), strict=True):
            text.call.account.add(prefill_tokens=len(text.tokens), flops=self.flops * len(text.tokens))
            cast(PendingScores, text.call).deliver(text.number, reward)

    def _batch(self, texts: Sequence[TextRow]) -> Sequence[TextRow]:
        """Return the first of the texts (by rising length) that fit into one batch."""
        batch = texts if self.pads else [text for text in texts if len(text.tokens) == len(texts[0].tokens)]
        fitting = sum(len(text.tokens) * count <= self.batch_tokens for count, text in enumerate(batch, 1))
        return batch[: max(1, fitting)]

    def _forward(self, batch: Sequence[TextRow]) -> Tensor:
        """Return the outputs [texts, labels] of the classifier."""
        rows = [torch.tensor(text.tokens, dtype=torch.long) for text in batch]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.pad_id).to(self.model.device)
        if self.pads:
            mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(self.model.device)
            types = {} if not self.typed else {"token_type_ids": _token_types(batch).to(self.model.device)}
            return cast(Tensor, self.model(input_ids=ids, attention_mask=mask, **types).logits)
        # The head is applied at the last token here, because the model would look for padding.
        head = cast(torch.nn.Module, self.model.score)
        return cast(Tensor, head(self.model.base_model(input_ids=ids).last_hidden_state[:, -1]))


def _token_types(batch: Sequence[TextRow]) -> Tensor:
    """Return the token types [texts, tokens]: those of text pairs, and 0 for other texts."""
    types = [text.tokens.types if isinstance(text.tokens, TypedRow) else [0] * len(text.tokens) for text in batch]
    return pad_sequence([torch.tensor(row, dtype=torch.long) for row in types], batch_first=True)


def is_causal(model: PreTrainedModel) -> bool:
    """Return whether a classifier is a decoder. Decoders have a head called `score`, encoders have a `classifier`."""
    return isinstance(getattr(model, "score", None), torch.nn.Module) and not model.config.is_encoder_decoder


def _common_prefix(rows: Sequence[list[int]]) -> list[int]:
    extremes = zip(min(rows), max(rows), strict=False)  # in lexicographic order
    return [low for low, _ in takewhile(lambda pair: pair[0] == pair[1], extremes)]
