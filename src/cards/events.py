"""What flows out of a method: Events; what they fold into: Segments and a Result."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal, TypedDict

from cards.usage import Role, Usage

if TYPE_CHECKING:
    from cards.fingerprint import Fingerprint

FORMAT = 1  # of results as JSON
FinishReason = Literal["stop", "length", "deadline", "interrupted"]


class Message(TypedDict):
    """One turn of a conversation; role is `user`, `assistant` or `system`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the LM is given: its text, its tokens, and the messages it was made of (None for raw text)."""

    text: str
    token_ids: tuple[int, ...] = ()
    messages: tuple[Message, ...] | None = None
    vocabulary: Fingerprint | str = ""  # fingerprint of the tokenizer that made token_ids
    template: str | None = None  # the chat template that rendered the messages


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of an answer. `entropy` is the uncertainty (nats) of the token after it, when a boundary measured it.

    `reward` is that of the whole answer up to and including this piece; `candidates` is how many candidates got a
    verdict before one was taken; `fallback` is true if the piece was taken untested; `rejected` holds the refused
    candidates when tracing. `finish_reason` is set on a piece that ends the answer.
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


@dataclass(frozen=True, slots=True)
class Response:
    """An answer so far; grows by `+ segment`."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None

    def __add__(self, segment: Segment) -> Response:
        return Response(self.text + segment.text, self.token_ids + segment.token_ids, segment.finish_reason)


@dataclass(frozen=True, slots=True)
class Proposed:
    """Candidate number `candidate` (from 0) for segment number `position` (from 0), drawn by the LM or by a draft."""

    position: int
    candidate: int
    segment: Segment
    by: Role = "lm"


@dataclass(frozen=True, slots=True)
class Scored:
    """The candidate now carries its reward and the threshold it is held against (None if there is none)."""

    position: int
    candidate: int
    segment: Segment


@dataclass(frozen=True, slots=True)
class Rejected:
    position: int
    candidate: int
    segment: Segment


@dataclass(frozen=True, slots=True)
class Accepted:
    """The segment is now part of the answer."""

    position: int
    candidate: int
    segment: Segment


@dataclass(frozen=True, slots=True)
class Fallback:
    """Too many rejections: the best candidate is now part of the answer, untested."""

    position: int
    candidate: int
    segment: Segment


@dataclass(frozen=True, slots=True)
class Result:
    """An answer with its segments and its exact cost."""

    text: str
    token_ids: tuple[int, ...]
    segments: tuple[Segment, ...]
    reward: float | None
    finish_reason: FinishReason
    usage: Usage
    seed: int
    method: str

    def to_dict(self) -> dict[str, object]:
        """A JSON-ready dict with the same names."""
        return asdict(self)

    def to_json(self, indent: int | None = None) -> str:
        """The same as a JSON text, with the version of its format."""
        return json.dumps({"format": FORMAT, **self.to_dict()}, ensure_ascii=False, indent=indent)


@dataclass(frozen=True, slots=True)
class Done:
    result: Result


Event = Proposed | Scored | Rejected | Accepted | Fallback | Done


@dataclass(slots=True)
class Fold:
    """Folds the events of one request into its books and, at the end, its Result."""

    usage: Usage
    seed: int
    method: str
    segments: list[Segment] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)
    drafted: set[tuple[int, int]] = field(default_factory=set)  # (position, candidate) of what a draft proposed

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
                self._take(event)
            case Fallback():
                self.usage.fallbacks += 1
                self._take(event)

    def _take(self, event: Accepted | Fallback) -> None:
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
