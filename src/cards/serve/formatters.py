"""Responses in OpenAI's JSON formats, complete and as chunks, with additional fields under `cards`."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate, pairwise
from typing import Any, ClassVar

from cards.engines.base import Engine
from cards.engines.detokenizer import Detokenizer
from cards.events import Accepted, Done, Event, Fallback, Prompt, Proposed, Result, Scored, Segment
from cards.serve.errors import ApiError, api_error
from cards.serve.generation import Choice, ChoiceEvent, GenerationRequest
from cards.serve.logprobs import TokenLogprob
from cards.usage import Usage

REASONS = {"deadline": "length", "interrupted": "length"}  # OpenAI has no names for these; `cards.finish` does
Fields = dict[str, Any]
FORMAT = 1  # version of the `cards` objects


@dataclass
class ResponseFormatter(ABC):
    """The JSON of one response to the client, which can contain several choices."""

    id: str
    model: str
    request: GenerationRequest
    reward: str | None
    fingerprint: str
    created: int = field(default_factory=lambda: int(time.time()))
    kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    @abstractmethod
    def text(self, text: str) -> Fields:
        """Return the fields of a choice with its complete text."""

    @abstractmethod
    def delta(self, text: str, first: bool) -> Fields:
        """Return the fields of a chunk with more text of a choice."""

    @abstractmethod
    def logprobs(self, tokens: Sequence[str], values: Sequence[TokenLogprob]) -> Fields:
        """Return the log-probabilities of a choice's tokens, given as texts."""

    def complete(self, events: Sequence[ChoiceEvent]) -> Fields:
        """Return the complete response, given all events."""
        choices = []
        for choice in self.request.choices:
            extra: Fields = {"segments": [summary(segment) for segment in _result(choice).segments]}
            if self.request.trace:
                extra["trace"] = [trace(e) for owner, e in events if owner is choice and not isinstance(e, Done)]
            choices.append(self.text(self._lead(choice) + _result(choice).text) | self._finished(choice, extra))
        return self._head(self.kind) | {"choices": choices, "usage": usage(self.request.choices), "cards": self._about()}

    def opening(self) -> list[Fields]:
        """Return the data of the events before the first chunk of a stream."""
        return []

    def chunks(self, choice: Choice, event: Event, first: bool, last: bool) -> list[Fields]:
        """Return the data of a stream for an event, which can be the `first` of its choice and the `last` of all choices."""
        return [self.chunk(choice, event, first, last)]

    def closing(self, with_usage: bool) -> list[Fields | str]:
        """Return the data of the events at the end of a stream."""
        return [*([self.usage_chunk()] if with_usage else []), "[DONE]"]

    def failure(self, error: ApiError) -> list[Fields | str]:
        """Return the data of the events that end a stream with an error."""
        return [error.body, "[DONE]"]

    def chunk(self, choice: Choice, event: Event, first: bool, last: bool) -> Fields:
        """Return the chunk for an event; the last one contains the usage."""
        lead = self._lead(choice) if first else ""
        match event:
            case Done(result):
                chosen = self.delta(lead + result.text[len(choice.emitted) :], first) | self._finished(choice, {})
            case Accepted(segment=segment) | Fallback(segment=segment):
                extra = {"segment": summary(segment)} | ({"trace": trace(event)} if self.request.trace else {})
                chosen = self.delta(lead + segment.text, first) | self._unfinished(choice, extra)
            case _:
                chosen = self.delta(lead, first) | self._unfinished(choice, {"trace": trace(event)})
        about = {"cards": self._about() | {"usage": usage(self.request.choices)}} if last else {}
        return self._head(self.chunk_kind) | {"choices": [chosen]} | about

    def usage_chunk(self) -> Fields:
        """Return OpenAI's last chunk, which clients request with `stream_options`."""
        return self._head(self.chunk_kind) | {"choices": [], "usage": usage(self.request.choices)}

    def _head(self, kind: str) -> Fields:
        about = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return about | {"system_fingerprint": self.fingerprint}

    def _about(self) -> Fields:
        ignored = {"ignored": list(self.request.ignored)} if self.request.ignored else {}
        weights = {"weights": dict(self.request.weights)} if self.request.weights else {}
        about = {"format": FORMAT, "method": self.request.decoder.method.name, "reward": self.reward}
        return about | weights | ignored

    def _lead(self, choice: Choice) -> str:
        """Return the text before the response."""
        return choice.prompt.text if self.request.echo else ""

    def _unfinished(self, choice: Choice, extra: Fields) -> Fields:
        return {"index": choice.index, "finish_reason": None, "logprobs": None, "cards": {"format": FORMAT} | extra}

    def _finished(self, choice: Choice, extra: Fields) -> Fields:
        result, logprobs = _result(choice), None
        if choice.logprobs is not None:
            tokens = token_texts(self.request.decoder.engine, choice.prompt.token_ids, result.token_ids)
            if self.request.echo:
                tokens = prompt_texts(self.request.decoder.engine, choice.prompt) + tokens
            logprobs = self.logprobs(tokens, choice.logprobs)
        extra |= {"seed": result.seed, "reward": result.reward, "finish": result.finish_reason}
        extra |= {"aligned": choice.unaligned is None}
        extra |= {"reason": api_error(choice.unaligned).detail} if choice.unaligned else {}
        if choice.inspection is not None:
            tokens = token_texts(self.request.decoder.engine, choice.prompt.token_ids, result.token_ids)
            extra["inspection"] = {"tokens": tokens} | asdict(choice.inspection)
        reason = REASONS.get(result.finish_reason, result.finish_reason)
        return {"index": choice.index, "finish_reason": reason, "logprobs": logprobs, "cards": {"format": FORMAT} | extra}


class ChatFormatter(ResponseFormatter):
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def text(self, text: str) -> Fields:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def delta(self, text: str, first: bool) -> Fields:
        return {"delta": ({"role": "assistant"} if first else {}) | {"content": text}}

    def logprobs(self, tokens: Sequence[str], values: Sequence[TokenLogprob]) -> Fields:
        return {"content": [token_fields(*pair) for pair in zip(tokens, values, strict=True)], "refusal": None}


class CompletionFormatter(ResponseFormatter):
    kind = chunk_kind = "text_completion"

    def text(self, text: str) -> Fields:
        return {"text": text}

    def delta(self, text: str, first: bool) -> Fields:
        return {"text": text}

    def logprobs(self, tokens: Sequence[str], values: Sequence[TokenLogprob]) -> Fields:
        starts = [0, *accumulate(map(len, tokens))][: len(tokens)]
        top = [_top(value) for value in values] if self.request.logprobs else None
        found = [value.logprob for value in values]
        return {"tokens": list(tokens), "token_logprobs": found, "top_logprobs": top, "text_offset": starts}


def usage(choices: Sequence[Choice]) -> Fields:
    """Return OpenAI's token counts, where each prompt counts once, and the fields of the usage record."""
    prompt = sum(len(prompt.token_ids) for prompt in {id(c.prompt): c.prompt for c in choices}.values())
    completion = sum(len(_result(choice).token_ids) for choice in choices)
    record = sum((choice.usage for choice in choices), Usage()).to_dict()
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return counts | {"prompt_tokens_details": {"cached_tokens": cached_tokens(choices)}} | record


def cached_tokens(choices: Sequence[Choice]) -> int:
    """Return how many tokens of the prompts the cache held before the request."""
    found: dict[int, int] = {}
    for choice in choices:
        cached = min(choice.usage.first_cached or 0, len(choice.prompt.token_ids))
        found[id(choice.prompt)] = min(cached, found.get(id(choice.prompt), cached))
    return sum(found.values())


def token_fields(token: str, value: TokenLogprob) -> Fields:
    """Return the log-probability of a token in the format of chats."""
    top = [{"token": one.text, "logprob": one.logprob, "bytes": list(one.data)} for one in value.top]
    return {"token": token, "logprob": value.logprob, "bytes": list(token.encode()), "top_logprobs": top}


def _top(value: TokenLogprob) -> dict[str, float] | None:
    """Return the log-probabilities of the alternatives and of the token itself, by text. The highest counts for equal texts."""
    if value.own is None:
        return None
    found: dict[str, float] = {}
    for one in (*value.top, value.own):
        found[one.key] = max(one.logprob, found.get(one.key, one.logprob))
    return found


def summary(segment: Segment) -> Fields:
    names = ("text", "reward", "threshold", "entropy", "candidates", "fallback")
    return {name: getattr(segment, name) for name in names} | {"tokens": len(segment.token_ids)}


def trace(event: Event) -> Fields:
    """Return an event with its candidate, reward and threshold, and what only events of its kind have."""
    assert not isinstance(event, Done)
    segment = event.segment
    fields: Fields = {"event": type(event).__name__.lower(), "position": event.position, "candidate": event.candidate}
    fields |= {name: getattr(segment, name) for name in ("text", "reward", "threshold", "entropy")}
    fields |= {"tokens": len(segment.token_ids)}
    match event:
        case Proposed(by=by, parent=parent):
            fields |= {"by": by, "parent": parent}
        case Scored(schedule=schedule, u=u):
            fields |= {"schedule": schedule and asdict(schedule), "u": u}
    return fields


def token_texts(engine: Engine, before: Sequence[int], token_ids: Sequence[int]) -> list[str]:
    """Return the text that each token adds; a character of several tokens belongs to the last of them."""
    text = Detokenizer(engine.tokenizer, before, engine.end_ids)
    lengths = [0] + [len(text.push([token])) for token in token_ids]
    return [text.text[start:end] for start, end in pairwise(lengths)]


def prompt_texts(engine: Engine, prompt: Prompt) -> list[str]:
    """Return the texts of a prompt's tokens, which join to its text. Tokens before the text, such as <s>, have none."""
    texts = token_texts(engine, (), prompt.token_ids)
    extra = len("".join(texts)) - len(prompt.text)
    for i, text in enumerate(texts):
        if extra <= 0:
            break
        texts[i], extra = text[extra:], extra - len(text)
    return texts


def _result(choice: Choice) -> Result:
    assert choice.result is not None
    return choice.result
