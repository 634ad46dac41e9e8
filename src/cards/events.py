"""Events of a method, and the Segments and the Result that are built from them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from cards.trace_html import trace_html
from cards.usage import Role, Usage

if TYPE_CHECKING:
    from cards.acceptance import Schedule
    from cards.fingerprint import Fingerprint

FORMAT = 1  # version of the JSON format of results
FinishReason = Literal["stop", "length", "deadline", "interrupted"]


class Message(TypedDict):
    """One turn of a conversation. The role is `user`, `assistant` or `system`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the response that is accepted or rejected as a unit.

    `entropy` is the uncertainty of the next token (nats for the entropy measure), if the boundary measured it.
    `finish_reason` is set if the segment ends the response. `reward` scores the whole response up to the end of this segment.
    `candidates` counts the candidates tested, including this one. `fallback` is true if the segment was used without passing
    the test. `rejected` holds the rejected candidates when tracing. `held` is the text of the tokens that is not yet in `text`,
    because it may start a stop string.
    """

    text: str
    token_ids: tuple[int, ...]
    entropy: float | None = None
    finish_reason: FinishReason | None = None
    reward: float | None = None
    threshold: float | None = None
    candidates: int = 1
    fallback: bool = False
    rejected: tuple[Segment, ...] = ()
    held: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    """The response so far. `response + segment` appends a segment. `held` is that of the last segment."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    held: str = ""

    def __add__(self, segment: Segment) -> Response:
        return Response(self.text + segment.text, self.token_ids + segment.token_ids, segment.finish_reason, segment.held)

    @property
    def decoded(self) -> Response:
        """The response with the text of all its tokens."""
        return replace(self, text=self.text + self.held, held="") if self.held else self


@dataclass(frozen=True, slots=True)
class Prompt:
    """The input of the LM: its text, its tokens, and the messages it was rendered from (None for raw text).

    `begun` is the beginning of the assistant's message, which the response continues. `thought` is a beginning of the response,
    such as its thinking, that a method continues. It follows `begun`. Both are part of the text and the tokens, but not of the
    messages.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    messages: tuple[Message, ...] | None = None
    vocabulary: Fingerprint | str = ""  # fingerprint of the tokenizer that made token_ids
    template: str | None = None  # the chat template that rendered the messages
    begun: str = ""
    chat_template_kwargs: Mapping[str, Any] | None = None  # further variables of the chat template
    thought: Response = Response()

    def followed_by(self, start: Response) -> Prompt:
        """Return the prompt followed by a beginning of the response."""
        thought = Response(self.thought.text + start.text, self.thought.token_ids + start.token_ids)
        return replace(self, text=self.text + start.text, token_ids=self.token_ids + start.token_ids, thought=thought)

    @property
    def bare(self) -> Prompt:
        """The prompt without `thought`."""
        text = self.text[: len(self.text) - len(self.thought.text)]
        token_ids = self.token_ids[: len(self.token_ids) - len(self.thought.token_ids)]
        return replace(self, text=text, token_ids=token_ids, thought=Response())


@dataclass(frozen=True, slots=True)
class CandidateEvent:
    """An event of candidate number `candidate` for segment number `position` (both from 0)."""

    position: int
    candidate: int
    segment: Segment


@dataclass(frozen=True, slots=True)
class Proposed(CandidateEvent):
    """The candidate was drawn by the LM or a draft.

    `parent` is (position, candidate) of the candidate that it continues; None stands for the accepted segments.
    """

    by: Role = "lm"
    parent: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Scored(CandidateEvent):
    """The candidate has a reward, and the threshold that it is compared with (None if there is none).

    `schedule` gives the threshold at other lengths, and `u` is the random number of the acceptance test, if there is one.
    """

    schedule: Schedule | None = None
    u: float | None = None


@dataclass(frozen=True, slots=True)
class Rejected(CandidateEvent):
    """The candidate was rejected."""


@dataclass(frozen=True, slots=True)
class Accepted(CandidateEvent):
    """The candidate was accepted: its segment is now part of the response."""


@dataclass(frozen=True, slots=True)
class Fallback(CandidateEvent):
    """Too many candidates were rejected: the best one is now part of the response without passing the test."""


@dataclass(frozen=True, slots=True)
class Result:
    """A response with its segments and its exact cost."""

    text: str
    token_ids: tuple[int, ...]
    segments: tuple[Segment, ...]
    reward: float | None
    finish_reason: FinishReason
    usage: Usage
    seed: int
    method: str

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a JSON-ready dict."""
        return asdict(self)

    def to_json(self, indent: int | None = None) -> str:
        """Return the fields as JSON, with the version of the format."""
        return json.dumps({"format": FORMAT, **self.to_dict()}, ensure_ascii=False, indent=indent)

    def _repr_html_(self) -> str:
        """Return the response with its candidates for notebooks."""
        return trace_html(self)


@dataclass(frozen=True, slots=True)
class Done:
    """The request is complete."""

    result: Result


Event = Proposed | Scored | Rejected | Accepted | Fallback | Done


@dataclass(slots=True)
class Fold:
    """Accumulates the events of one request into its usage and its Result."""

    usage: Usage
    seed: int
    method: str
    segments: list[Segment] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)
    drafted: set[tuple[int, int]] = field(default_factory=set)  # (position, candidate) of candidates from a draft

    def add(self, event: Event) -> None:
        match event:
            case Proposed(position, candidate, by=by):
                self.usage.candidates += 1
                if by == "draft":
                    self.drafted.add((position, candidate))
            case Rejected():
                self.usage.rejected += 1
            case Accepted():
                self.usage.accepted += 1
                self._append(event)
            case Fallback():
                self.usage.fallbacks += 1
                self._append(event)

    def _append(self, event: Accepted | Fallback) -> None:
        self.segments.append(event.segment)
        if (event.position, event.candidate) in self.drafted:
            self.usage.draft_kept_tokens += len(event.segment.token_ids)

    def result(self, finish_reason: FinishReason | None = None) -> Result:
        last = self.segments[-1] if self.segments else None
        token_ids = tuple(t for s in self.segments for t in s.token_ids)
        drawn = self.usage.lm_decoded_tokens + self.usage.draft_kept_tokens
        self.usage.lm_wasted_tokens = drawn - len(token_ids)
        return Result(
            text="".join(s.text for s in self.segments),
            token_ids=token_ids,
            segments=tuple(self.segments),
            reward=last.reward if last else None,
            finish_reason=finish_reason or (last and last.finish_reason) or "length",
            usage=self.usage,
            seed=self.seed,
            method=self.method,
        )
