"""Reward models from Hugging Face: sequence classifiers, causal (in slots, prefixes reused) or encoders (whole texts)."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from cards.engines.loading import DUMMY_MASK, context_of, load, slotted
from cards.engines.scheduler import Job, Row, Scheduler, Worker
from cards.engines.text import fingerprint
from cards.errors import ModelError, RewardError, SettingError, UnknownNameError
from cards.events import Prompt, Response
from cards.rewards.base import Reward
from cards.usage import Usage, meter

log = logging.getLogger("cards")
Output = int | str | Sequence[float] | None


class ClassifierReward(Reward):
    """The score of a sequence classifier: one output, a chosen one (index or label), or a weighted sum of all.

    Texts reach the RM as it knows them: messages in its own chat template if it has one, the LM's token ids where both
    share a vocabulary, text otherwise. A finished answer has the template's end of turn, an unfinished one has not.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        output: Output = None,
        target: float | None = None,
        slots: int = 32,
        context: int | None = None,
        name: str | None = None,
    ) -> None:
        self.model, self.tokenizer = model.train(False), tokenizer
        self.name = name or model.name_or_path or type(model).__name__
        self.target = target if target is not None else getattr(model.config, "cards_target", None)
        self.weights = _weights(model, output, self.name)
        self.context = context_of(model, context)
        self.vocabulary = fingerprint(tokenizer)
        self.reader: _Slotted | _Padded
        try:
            self.reader = _Slotted(self, slots) if _is_causal(model) else _Padded(self)
        except ModelError as error:
            log.warning("Reward %r is read without reuse of prefixes: %s", self.name, error)
            self.reader = _Padded(self)

    @classmethod
    def load(
        cls,
        name: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        output: Output = None,
        target: float | None = None,
        slots: int = 32,
        context: int | None = None,
    ) -> ClassifierReward:
        """`tiny`, a folder, or a Hugging Face name. Raises ModelError if the model has no trained score head."""
        model, tokenizer = load(AutoModelForSequenceClassification, name, "rm", device, dtype)
        return cls(model, tokenizer, output=output, target=target, slots=slots, context=context, name=name)

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        rows = [self.tokens(prompt, response) for response in responses]
        for row, response in zip(rows, responses, strict=True):
            if len(row) > self.context:
                raise RewardError(
                    f"Reward {self.name!r} reads at most {self.context} tokens, and prompt and answer have {len(row)} by the "
                    f"token {len(response.token_ids)} of the answer: lower max_tokens or shorten the prompt."
                )
        return await self.reader.score(rows)

    def tokens(self, prompt: Prompt, response: Response) -> list[int]:
        """The RM's token ids of a prompt with a response."""
        own = self.tokenizer.chat_template
        if prompt.messages is not None and own is not None and own != prompt.template:
            return self._templated(prompt, response)
        if prompt.vocabulary == self.vocabulary:
            return [*prompt.token_ids, *response.token_ids]
        return cast("list[int]", self.tokenizer(prompt.text + response.text)["input_ids"])

    def _templated(self, prompt: Prompt, response: Response) -> list[int]:
        messages: list[Any] = list(prompt.messages or ())
        unfinished = bool(response.token_ids) and response.finish_reason is None
        if response.token_ids:
            messages.append({"role": "assistant", "content": response.text})
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=unfinished)
        return cast("list[int]", self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def combine(self, outputs: Tensor) -> list[float]:
        """Classifier outputs [rows, labels] to one reward a row."""
        return cast("list[float]", (outputs.double() @ self.weights.to(outputs.device)).tolist())

    async def aclose(self) -> None:
        self.reader.close()


class _Slotted:
    """Reads causal RMs in slots: of each text only what no slot holds."""

    def __init__(self, reward: ClassifierReward, slots: int) -> None:
        model, mask = reward.model, DUMMY_MASK.to(reward.model.device)
        head = cast("torch.nn.Module", model.score)

        def output(input_ids: Tensor, position_ids: Tensor, last: Tensor) -> Tensor:
            hidden = model.base_model(
                input_ids=input_ids, position_ids=position_ids, attention_mask=mask, use_cache=False
            ).last_hidden_state
            return cast(Tensor, head(hidden[0, last]))

        held = slotted(model, output, slots, reward.context, lambda ids: head(model.base_model(ids).last_hidden_state[:, -1]))
        self.scheduler = Scheduler(held, self._consume, "rm")
        self.combine = reward.combine

    async def score(self, rows: Sequence[list[int]]) -> list[float]:
        reading = Reading(rows, meter())
        self.scheduler.submit(lambda: self._begin(reading))
        try:
            return await reading.future
        finally:
            reading.cancelled = True

    def close(self) -> None:
        self.scheduler.worker.remove(self.scheduler)

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
                reading.deliver(row.number, reward)
            else:
                admitted += reading.then
        return admitted


class Reading(Job):
    """Texts to score, and the future of their rewards."""

    def __init__(self, rows: Sequence[list[int]], usage: Usage) -> None:
        super().__init__(usage)
        self.rows = rows
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[list[float]] = self.loop.create_future()
        self.then: list[Row] = []
        self.rewards: dict[int, float] = {}

    def deliver(self, number: int, reward: float) -> None:
        self.rewards[number] = reward
        if len(self.rewards) == len(self.rows):
            result = [self.rewards[i] for i in range(len(self.rows))]
            self.loop.call_soon_threadsafe(self._settle, lambda: self.future.set_result(result))

    def fail(self, error: BaseException) -> None:
        self.loop.call_soon_threadsafe(self._settle, lambda: self.future.set_exception(error))

    def _settle(self, how: Callable[[], None]) -> None:
        if not self.future.done():
            how()


class Text(Row):
    """A text to score."""

    __slots__ = ("number",)

    def __init__(self, job: Reading, number: int, tokens: list[int]) -> None:
        super().__init__(job, tokens)
        self.number = number


class _Padded:
    """Reads whole texts, in batches: encoders padded on the right under a mask, other models with texts of one length."""

    kind: Literal["lm", "rm"] = "rm"
    batch_tokens = 8192

    def __init__(self, reward: ClassifierReward) -> None:
        self.model, self.combine = reward.model, reward.combine
        self.pads = not _is_causal(reward.model)
        self.pad_id = reward.tokenizer.pad_token_id or 0
        self.inbox: deque[Reading] = deque()
        self.worker = Worker.on(reward.model.device)
        self.worker.add(self)

    @property
    def busy(self) -> bool:
        return bool(self.inbox)

    async def score(self, rows: Sequence[list[int]]) -> list[float]:
        reading = Reading(rows, meter())
        self.inbox.append(reading)
        self.worker.wake()
        try:
            return await reading.future
        finally:
            reading.cancelled = True

    def close(self) -> None:
        self.worker.remove(self)

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
                job.fail(error)

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
            outputs = self.model.score(self.model.base_model(input_ids=ids).last_hidden_state[:, -1])
        for text, reward in zip(batch, self.combine(outputs), strict=True):
            text.job.usage.add(rm_tokens=len(text.tokens))
            cast(Reading, text.job).deliver(text.number, reward)
        return count


def _is_causal(model: PreTrainedModel) -> bool:
    """Decoder classifiers put a head called `score` on the last token; encoders have a `classifier`."""
    return isinstance(getattr(model, "score", None), torch.nn.Module) and not model.config.is_encoder_decoder


def _weights(model: PreTrainedModel, output: Output, name: str) -> Tensor:
    """Weights [labels] that make one reward of the outputs."""
    labels = cast("dict[int, str]", model.config.id2label or {})
    count = cast(int, model.config.num_labels)
    listing = ", ".join(f"{i} ({labels.get(i, '')})" for i in range(count))
    if output is None:
        if count != 1:
            raise SettingError(
                f"Reward {name!r} has {count} outputs: {listing}. Choose one (output=...) or give {count} weights."
            )
        output = 0
    if isinstance(output, str):
        by_label = {label: i for i, label in labels.items()}
        if output not in by_label:
            raise UnknownNameError("reward output", output, by_label)
        output = by_label[output]
    if isinstance(output, int):
        if not 0 <= output < count:
            raise SettingError(f"output {output} is out of range: {name!r} has {listing}.")
        return torch.nn.functional.one_hot(torch.tensor(output), count).double()
    if len(output) != count:
        raise SettingError(f"{len(output)} weights were given for the {count} outputs of {name!r}: {listing}.")
    return torch.tensor(output, dtype=torch.float64)


def _common_prefix(rows: Sequence[list[int]]) -> list[int]:
    low, high = min(rows), max(rows)
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:length]
