"""The state of a run on the page: updated by the events of the decoder, shown at regular intervals."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import uuid4

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from cards.boundaries import Entropy
from cards.console import ENDINGS
from cards.decoder import Decoder
from cards.errors import CardsError, PromptError
from cards.events import Accepted, Done, Event, Fallback, Fold, Rejected, Response, Result, Scored, Segment
from cards.methods.segments.driver import SegmentMethod
from cards.serve.errors import api_error
from cards.serve.generation import Choice
from cards.serve.record import Record, report
from cards.serve.schemas import Body, ChatBody, CompletionBody
from cards.serve.service import Service
from cards.usage import Usage

FRAME_SECONDS = 0.1
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
    choice: Choice | None = None
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
        stream = self.choice and self.choice.stream
        return stream.result if stream else Fold(Usage(), self.seed, self.method).result("interrupted")

    @property
    def unaligned(self) -> bool:
        """Whether plain sampling replaced the method because the reward failed."""
        return self.choice is not None and self.choice.unaligned is not None

    @property
    def reward(self) -> float | None:
        """Return the reward of the response so far, as seen by the method or graded after its end."""
        return self.result.reward if self.grade is None else self.grade

    @property
    def target(self) -> float | None:
        """Return the target reward r* of the method, else the default target of the reward."""
        if self.decoder is None:
            return None
        targets: list[float | None] = [getattr(method, "target", None) for method in self.decoder.method.nest]
        given = next((target for target in targets if target is not None), None)
        return given if given is not None or self.decoder.reward is None else self.decoder.reward.target

    @property
    def entropy_threshold(self) -> float | None:
        """Return tau_u if the method ends segments by entropy."""
        if self.decoder is None:
            return None
        method = self.decoder.method.nest[-1]
        known = self.decoder.engine.entropy_threshold
        boundary = method.segment_boundary(known) if isinstance(method, SegmentMethod) else getattr(method, "boundary", None)
        return boundary.threshold if isinstance(boundary, Entropy) else None

    async def frames(self, service: Service, settings_of: Callable[[], dict[str, Any]] = dict) -> AsyncGenerator[Run, None]:
        """Decode like a request to the API, and yield this run at regular intervals and at the end.

        `settings_of` returns the settings of the method, or raises CardsError. Closing the generator or cancelling `task`
        frees the cache slots.
        """
        self.task = asyncio.create_task(self._follow(service, settings_of))
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

    async def _follow(self, service: Service, settings_of: Callable[[], dict[str, Any]]) -> None:
        record = Record(uuid4().hex, "playground", model=service.name)
        try:
            body = self._body(settings_of(), service.engine.chats)
            validated = service.validate(body, record.arrived)
            self.decoder, [self.choice] = validated.decoder, validated.choices
            record.generation = service.generation(validated)
            async with aclosing(record.generation) as generation:
                await generation.start()
                async for item in generation.events():
                    if item is not None:
                        self.add(item[1])
            with suppress(TimeoutError):  # no grade after the deadline
                async with asyncio.timeout(validated.deadline - time.monotonic()):
                    await self._grade(validated.decoder)
            self.ending, record.status = ENDINGS[self.result.finish_reason], 200
        except (CardsError, HTTPException, RequestValidationError) as error:
            record.error = api_error(error)
            self.error, self.ending = record.error.detail, "failed"
        except asyncio.CancelledError:
            record.disconnected = True
            raise
        except Exception as error:
            record.error = api_error(error)
            raise
        finally:
            self.ending = self.ending or "stopped"
            report(record, service.metrics.observe, service.options.log_prompts)

    def _body(self, settings: dict[str, Any], chats: bool) -> Body:
        """Return the request to the API. Raises PromptError or RequestValidationError."""
        if not self.prompt.strip():
            raise PromptError("The prompt is empty: give a text.")
        about = {"method": self.method, "settings": settings, "trace": True}
        fields = {"seed": self.seed, "max_tokens": self.max_tokens, "stream": True, "cards": about}
        messages = [{"role": "user", "content": self.prompt.strip()}]
        try:
            if chats:
                return ChatBody.model_validate({"messages": messages, **fields})
            return CompletionBody.model_validate({"prompt": self.prompt, **fields})
        except ValidationError as error:
            raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in error.errors()]) from error

    async def _grade(self, decoder: Decoder) -> None:
        """Score the response of a method that uses no reward. The cost is not part of its usage."""
        if self.choice is None or self.done is None or self.done.reward is not None or self.unaligned:
            return
        if decoder.reward is not None:
            response = Response(self.done.text, self.done.token_ids, self.done.finish_reason)
            [self.grade] = await decoder.reward.score(self.choice.prompt, [response])
