"""The state of a run on the page: updated by the events of the decoder, shown at regular intervals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass, field
from itertools import count

from starlette.exceptions import HTTPException

from cards.boundaries import Entropy
from cards.console import ENDINGS
from cards.decoder import Decoder
from cards.errors import CardsError, PromptError
from cards.events import Accepted, Done, Event, Fallback, Fold, Rejected, Response, Result, Scored, Segment
from cards.methods.segments.driver import SegmentMethod
from cards.prompts import format_prompt
from cards.streams import AsyncStream
from cards.usage import Usage

FRAME_SECONDS = 0.1
Admission = Callable[[], AbstractAsyncContextManager[None]]
_numbers = count()


@dataclass(slots=True)
class Run:
    """One run of a method on a prompt.

    `pending` has the candidates of the current segment by position and candidate number, `rejected` all rejected
    candidates. `ending` is empty until the run ends.
    """

    method: str
    prompt: str
    seed: int
    max_tokens: int
    decoder: Decoder | None = None
    stream: AsyncStream | None = None
    segments: list[Segment] = field(default_factory=list)
    pending: dict[tuple[int, int], Segment] = field(default_factory=dict)
    rejected: set[Segment] = field(default_factory=set)
    done: Result | None = None
    grade: float | None = None  # reward of a response whose method uses no reward
    error: str = ""
    ending: str = ""
    task: asyncio.Task[None] | None = None
    id: str = field(default_factory=lambda: f"run-{next(_numbers)}")  # prefix of HTML ids

    def add(self, event: Event) -> None:
        match event:
            case Scored(position, candidate, segment):
                self.pending[position, candidate] = segment
            case Rejected(position, candidate, segment):
                self.pending[position, candidate] = segment
                self.rejected.add(segment)
            case Accepted(position, _, segment) | Fallback(position, _, segment):
                self.segments.append(segment)
                self.pending = {key: other for key, other in self.pending.items() if key[0] > position}
            case Done(result):
                self.done = result
                self.segments[:] = result.segments

    @property
    def result(self) -> Result:
        """Return the response and its cost so far."""
        if self.done is not None:
            return self.done
        return self.stream.result if self.stream else Fold(Usage(), self.seed, self.method).result("interrupted")

    @property
    def reward(self) -> float | None:
        """Return the reward of the response so far, as seen by the method or graded after its end."""
        return self.result.reward if self.grade is None else self.grade

    @property
    def target(self) -> float | None:
        """Return the target reward r* of the method, else the default target of the reward."""
        if self.decoder is None:
            return None
        target: float | None = getattr(self.decoder.method, "target", None)
        return target if target is not None or self.decoder.reward is None else self.decoder.reward.target

    @property
    def entropy_threshold(self) -> float | None:
        """Return tau_u if the method ends segments by entropy."""
        if self.decoder is None:
            return None
        method = self.decoder.method
        known = self.decoder.engine.entropy_threshold
        boundary = method.segment_boundary(known) if isinstance(method, SegmentMethod) else getattr(method, "boundary", None)
        return boundary.threshold if isinstance(boundary, Entropy) else None

    async def frames(self, decoder_of: Callable[[], Decoder], admission: Admission = nullcontext) -> AsyncGenerator[Run, None]:
        """Decode inside an `admission()` context, and yield this run at regular intervals and at the end.

        Closing the generator or cancelling `task` frees the cache slots.
        """
        self.task = asyncio.create_task(self._follow(decoder_of, admission))
        try:
            while not self.task.done():
                yield self
                await asyncio.wait({self.task}, timeout=FRAME_SECONDS)
            yield self
            if not self.task.cancelled():
                self.task.result()  # raises unexpected errors
        finally:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)

    async def _follow(self, decoder_of: Callable[[], Decoder], admission: Admission) -> None:
        try:
            if not self.prompt.strip():
                raise PromptError("The prompt is empty: give a text.")
            decoder = self.decoder = decoder_of()
            prompt = format_prompt(self.prompt, "auto", decoder.engine.chats)
            self.stream = decoder.astream(prompt, max_tokens=self.max_tokens, seed=self.seed, trace=True)
            async with admission(), aclosing(self.stream) as events:
                async for event in events:
                    self.add(event)
            if decoder.reward is not None and self.done is not None and self.done.reward is None:
                response = Response(self.done.text, self.done.token_ids, self.done.finish_reason)
                [self.grade] = await decoder.reward.score(decoder.engine.encode(prompt), [response])
            self.ending = ENDINGS[self.result.finish_reason]
        except (CardsError, HTTPException) as error:
            self.error, self.ending = getattr(error, "detail", str(error)), "failed"
        finally:
            self.ending = self.ending or "stopped"
