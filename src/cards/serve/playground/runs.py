"""One answer as far as it is: a fold over its events, and frames of it for whoever watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass, field
from itertools import count

from starlette.exceptions import HTTPException

from cards.boundaries import Boundary, Entropy
from cards.console import ENDINGS
from cards.decoder import Decoder
from cards.errors import CardsError, PromptError
from cards.events import Accepted, Done, Event, Fallback, Fold, Rejected, Response, Result, Scored, Segment
from cards.prompts import format_prompt
from cards.streams import AsyncStream
from cards.usage import Usage

FRAME = 0.1  # seconds between two looks
Place = Callable[[], AbstractAsyncContextManager[None]]
_numbers = count()


@dataclass(slots=True)
class Run:
    """What has happened to one prompt so far. `trying` are the candidates of the segment under way, `refused` all that were
    rejected; `ending` is empty while it runs."""

    method: str
    prompt: str
    seed: int
    max_tokens: int
    decoder: Decoder | None = None
    stream: AsyncStream | None = None
    segments: list[Segment] = field(default_factory=list)
    trying: dict[tuple[int, int], Segment] = field(default_factory=dict)
    refused: set[Segment] = field(default_factory=set)
    done: Result | None = None
    grade: float | None = None  # reward of an answer whose method did not ask for it
    error: str = ""
    ending: str = ""
    task: asyncio.Task[None] | None = None
    id: str = field(default_factory=lambda: f"run-{next(_numbers)}")  # of its parts in the page

    def add(self, event: Event) -> None:
        match event:
            case Scored(position, candidate, segment):
                self.trying[position, candidate] = segment
            case Rejected(position, candidate, segment):
                self.trying[position, candidate] = segment
                self.refused.add(segment)
            case Accepted(position, _, segment) | Fallback(position, _, segment):
                self.segments.append(segment)
                self.trying = {key: other for key, other in self.trying.items() if key[0] > position}
            case Done(result):
                self.done = result
                self.segments[:] = result.segments

    @property
    def result(self) -> Result:
        """The answer and its cost so far."""
        if self.done is not None:
            return self.done
        return self.stream.result if self.stream else Fold(Usage(), self.seed, self.method).result("interrupted")

    @property
    def reward(self) -> float | None:
        """Of the answer so far, as the method saw it or as it was graded."""
        return self.result.reward if self.grade is None else self.grade

    @property
    def target(self) -> float | None:
        """r*: the method's, else the one that the reward suggests."""
        if self.decoder is None:
            return None
        own: float | None = getattr(self.decoder.method, "target", None)
        return own if own is not None or self.decoder.reward is None else self.decoder.reward.target

    @property
    def entropy_threshold(self) -> float | None:
        """tau_u, where the method ends segments by it."""
        if self.decoder is None:
            return None
        method = self.decoder.method
        segments: Callable[[float], Boundary] | None = getattr(method, "segments", None)
        boundary = segments(self.decoder.engine.entropy_threshold) if segments else getattr(method, "boundary", None)
        return boundary.threshold if isinstance(boundary, Entropy) else None

    async def frames(self, decoder_of: Callable[[], Decoder], place: Place = nullcontext) -> AsyncGenerator[Run, None]:
        """Decode in a place, and yield this run whenever it is time for a look; the last look is at the end.

        Closing the generator frees the rows, and so does cancelling `task`, after which the generator ends by itself.
        """
        self.task = asyncio.create_task(self._follow(decoder_of, place))
        try:
            while not self.task.done():
                yield self
                await asyncio.wait({self.task}, timeout=FRAME)
            yield self
            if not self.task.cancelled():
                self.task.result()  # raises what is not the visitor's to mend
        finally:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)

    async def _follow(self, decoder_of: Callable[[], Decoder], place: Place) -> None:
        try:
            if not self.prompt.strip():
                raise PromptError("The prompt is empty: give the text to answer.")
            decoder = self.decoder = decoder_of()
            prompt = format_prompt(self.prompt, "auto", decoder.engine.chats)
            self.stream = decoder.astream(prompt, max_tokens=self.max_tokens, seed=self.seed, trace=True)
            async with place(), aclosing(self.stream) as events:
                async for event in events:
                    self.add(event)
            if decoder.reward is not None and self.done is not None and self.done.reward is None:
                answer = Response(self.done.text, self.done.token_ids, self.done.finish_reason)
                [self.grade] = await decoder.reward.score(decoder.engine.encode(prompt), [answer])
            self.ending = ENDINGS[self.result.finish_reason]
        except (CardsError, HTTPException) as error:
            self.error, self.ending = getattr(error, "detail", str(error)), "failed"
        finally:
            self.ending = self.ending or "stopped"
