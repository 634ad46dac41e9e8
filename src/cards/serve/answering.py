"""Answers one request: waits for its places, decodes its choices side by side, and frees everything when it is left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from cards.decoder import Decoder
from cards.errors import RewardError, UnavailableError
from cards.events import Accepted, Done, Event, Fallback, Prompt, Response, Result
from cards.serve.errors import ApiError
from cards.serve.gate import Gate
from cards.serve.readiness import Readiness
from cards.serve.tracing import Tracing
from cards.usage import Usage, track_usage


@dataclass(slots=True)
class Choice:
    """One of a request's answers. `unaligned` says why plain sampling gave it in place of the method."""

    index: int
    prompt: Prompt
    seed: int
    usage: Usage = field(default_factory=Usage)
    told: str = ""  # text that has been handed out
    result: Result | None = None
    logprobs: list[float] | None = None
    unaligned: str | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """What a client wants. `deadline` is a time of `time.monotonic`; `plain` replaces the decoder where its reward fails."""

    decoder: Decoder
    plain: Decoder | None
    choices: Sequence[Choice]
    max_tokens: int
    stop: tuple[str, ...]
    deadline: float
    trace: bool
    logprobs: bool
    stream: bool


Item = tuple[Choice, Event]


class Answering:
    """An order in the works. `begin` it, then iterate `items`, and `aclose` it in any case."""

    def __init__(self, order: Order, gate: Gate, readiness: Readiness, tracing: Tracing) -> None:
        self.order, self.gate, self.readiness, self.tracing = order, gate, readiness, tracing
        self.waited = 0.0  # seconds in the queue
        self.first_text: float | None = None  # when there was some, by `time.monotonic`
        self._queue: asyncio.Queue[Item | Exception] = asyncio.Queue()
        self._first: Item | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Wait for places and for the first thing to tell. Raises ApiError or CardsError if there will be none."""
        choices, start = self.order.choices, time.monotonic()
        try:
            async with asyncio.timeout(self.order.deadline - start):
                await self.gate.enter(len(choices))
        except TimeoutError:
            why = "The deadline passed while the request waited in the queue."
            raise ApiError(429, why, code="deadline", retry_after=self.gate.retry_after) from None
        self._tasks = [asyncio.create_task(self._answer(choice)) for choice in choices]
        for task in self._tasks:  # not in the task itself, which may be cancelled before it begins
            task.add_done_callback(lambda _: self.gate.leave())
        self.waited = time.monotonic() - start
        self._first = await self._next()

    async def items(self) -> AsyncIterator[Item]:
        """Accepted segments and `Done` of every choice as they come, with all other events if there is a trace."""
        left = len(self.order.choices)
        item = self._first or await self._next()
        while True:
            yield item
            left -= isinstance(item[1], Done)
            if not left:
                return
            item = await self._next()

    async def aclose(self) -> None:
        """Free the rows of what is not finished."""
        unfinished = [task for task in self._tasks if task.cancel()]
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if unfinished:
            await self.order.decoder.engine.settle()
        for choice in self.order.choices:
            if choice.result is None:  # nobody keeps what was drawn for it
                choice.usage.lm_wasted_tokens = choice.usage.lm_decoded_tokens + choice.usage.draft_kept_tokens

    async def _next(self) -> Item:
        item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        return item

    async def _answer(self, choice: Choice) -> None:
        decoder, plain = self.order.decoder, self.order.plain
        try:
            with self.tracing.answer(decoder.method.name, choice.usage):
                try:
                    await self._decode(choice, decoder)
                except (RewardError, UnavailableError) as error:
                    self.readiness.doubt()
                    if plain is None or (self.order.stream and choice.told):  # what was told cannot be taken back
                        raise
                    choice.unaligned = str(error)
                    await self._decode(choice, plain)
        except Exception as error:
            self._queue.put_nowait(error)

    async def _decode(self, choice: Choice, decoder: Decoder) -> None:
        order, choice.told = self.order, ""
        left = max(1e-3, order.deadline - time.monotonic())
        stream = decoder.astream(
            choice.prompt, max_tokens=order.max_tokens, seed=choice.seed, stop=order.stop, deadline=left, usage=choice.usage
        )
        async with aclosing(stream) as events:
            async for event in events:
                match event:
                    case Done(result):
                        if order.logprobs:
                            choice.logprobs = await self._logprobs(choice, result)
                        choice.result = result
                    case Accepted(segment=segment) | Fallback(segment=segment):
                        choice.told += segment.text
                        self.first_text = self.first_text or time.monotonic()
                    case _ if not order.trace:
                        continue
                self._queue.put_nowait((choice, event))

    async def _logprobs(self, choice: Choice, result: Result) -> list[float]:
        """Natural-log probabilities of the answer's tokens, from one more pass of the LM."""
        with track_usage(choice.usage):
            found = await self.order.decoder.engine.logprobs(choice.prompt, Response(result.text, result.token_ids))
        return [float(value) for value in found]
