"""Answers in the shapes of OpenAI's API, whole and in chunks, with ours under `cards`."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

from cards.engines.text import Detokenizer, TokenDecoder
from cards.events import Accepted, Done, Event, Fallback, Result, Segment
from cards.serve.answering import Choice, Item, Order
from cards.usage import Usage

REASONS = {"deadline": "length", "interrupted": "length"}  # OpenAI has no name for these; `cards.finish` says it
LEAST = -9999.0  # JSON has no minus infinity
Fields = dict[str, Any]
FORMAT = 1  # of the `cards` objects


@dataclass
class Shape(ABC):
    """How one request is answered."""

    id: str
    model: str
    order: Order
    reward: str | None
    created: int = field(default_factory=lambda: int(time.time()))
    kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    @abstractmethod
    def text(self, text: str) -> Fields:
        """A whole answer's text in a choice."""

    @abstractmethod
    def delta(self, text: str, first: bool) -> Fields:
        """More text in a choice."""

    @abstractmethod
    def logprobs(self, pieces: Sequence[str], values: Sequence[float]) -> Fields:
        """Log-probabilities of the answer's tokens, whose texts these are."""

    def whole(self, items: Sequence[Item]) -> Fields:
        """The answer, given all that happened."""
        choices = []
        for choice in self.order.choices:
            events = [event for its, event in items if its is choice]
            ours = {"segments": [summary(segment) for segment in _result(choice).segments]}
            if self.order.trace:
                ours["trace"] = [trace(event) for event in events if not isinstance(event, Done)]
            choices.append(self.text(_result(choice).text) | self._end(choice, ours))
        return self._head(self.kind) | {"choices": choices, "usage": usage(self.order.choices), "cards": self._ours()}

    def chunk(self, choice: Choice, event: Event, first: bool, last: bool) -> Fields:
        """What a streaming client is told of an event; the last chunk has the books."""
        match event:
            case Done(result):
                chosen = self.delta(result.text[len(choice.told) :], first) | self._end(choice, {})
            case Accepted(segment=segment) | Fallback(segment=segment):
                ours = {"segment": summary(segment)} | ({"trace": trace(event)} if self.order.trace else {})
                chosen = self.delta(segment.text, first) | self._open(choice, ours)
            case _:
                chosen = self.delta("", first) | self._open(choice, {"trace": trace(event)})
        ours = {"cards": self._ours() | {"usage": usage(self.order.choices)}} if last else {}
        return self._head(self.chunk_kind) | {"choices": [chosen]} | ours

    def usage_chunk(self) -> Fields:
        """OpenAI's last chunk, for who asks for it with `stream_options`."""
        return self._head(self.chunk_kind) | {"choices": [], "usage": usage(self.order.choices)}

    def _head(self, kind: str) -> Fields:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _ours(self) -> Fields:
        return {"format": FORMAT, "method": self.order.decoder.method.name, "reward": self.reward}

    def _open(self, choice: Choice, ours: Fields) -> Fields:
        return {"index": choice.index, "finish_reason": None, "logprobs": None, "cards": {"format": FORMAT} | ours}

    def _end(self, choice: Choice, ours: Fields) -> Fields:
        result, logprobs = _result(choice), None
        if choice.logprobs is not None:
            pieces = token_texts(self.order.decoder.engine.tokenizer, choice.prompt.token_ids, result.token_ids)
            logprobs = self.logprobs(pieces, [max(LEAST, value) for value in choice.logprobs])
        ours |= {"seed": result.seed, "reward": result.reward, "finish": result.finish_reason}
        ours |= {"aligned": choice.unaligned is None} | ({"reason": choice.unaligned} if choice.unaligned else {})
        reason = REASONS.get(result.finish_reason, result.finish_reason)
        return {"index": choice.index, "finish_reason": reason, "logprobs": logprobs, "cards": {"format": FORMAT} | ours}


class Chat(Shape):
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def text(self, text: str) -> Fields:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def delta(self, text: str, first: bool) -> Fields:
        return {"delta": ({"role": "assistant"} if first else {}) | {"content": text}}

    def logprobs(self, pieces: Sequence[str], values: Sequence[float]) -> Fields:
        content = [
            {"token": piece, "logprob": value, "bytes": list(piece.encode()), "top_logprobs": []}
            for piece, value in zip(pieces, values, strict=True)
        ]
        return {"content": content, "refusal": None}


class Completion(Shape):
    kind = chunk_kind = "text_completion"

    def text(self, text: str) -> Fields:
        return {"text": text}

    def delta(self, text: str, first: bool) -> Fields:
        return {"text": text}

    def logprobs(self, pieces: Sequence[str], values: Sequence[float]) -> Fields:
        starts = [sum(map(len, pieces[:i])) for i in range(len(pieces))]
        return {"tokens": list(pieces), "token_logprobs": list(values), "top_logprobs": None, "text_offset": starts}


def usage(choices: Sequence[Choice]) -> Fields:
    """OpenAI's counts, a prompt with several answers counted once, and our books beside them."""
    prompt = sum(len(prompt.token_ids) for prompt in {id(c.prompt): c.prompt for c in choices}.values())
    answers = sum(len(_result(choice).token_ids) for choice in choices)
    books = sum((choice.usage for choice in choices), Usage()).to_dict()
    return {"prompt_tokens": prompt, "completion_tokens": answers, "total_tokens": prompt + answers} | books


def summary(segment: Segment) -> Fields:
    names = ("text", "reward", "threshold", "entropy", "candidates", "fallback")
    return {name: getattr(segment, name) for name in names} | {"tokens": len(segment.token_ids)}


def trace(event: Event) -> Fields:
    """One event: what was drawn, how it was scored, what became of it."""
    assert not isinstance(event, Done)
    segment = event.segment
    told = {"event": type(event).__name__.lower(), "position": event.position, "candidate": event.candidate}
    return told | {"text": segment.text, "reward": segment.reward, "threshold": segment.threshold}


def token_texts(tokenizer: TokenDecoder, before: Sequence[int], token_ids: Sequence[int]) -> list[str]:
    """The text that each token adds; that of a split character comes with its last token."""
    text = Detokenizer(tokenizer, before)
    lengths = [0] + [len(text.push([token])) for token in token_ids]
    return [text.text[start:end] for start, end in pairwise(lengths)]


def _result(choice: Choice) -> Result:
    assert choice.result is not None
    return choice.result
