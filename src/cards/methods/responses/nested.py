"""Complete responses drawn by an inner method, side by side: their events, and the responses to choose from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

from cards.engines.base import Engine
from cards.events import Accepted, Done, Event, Fallback, Proposed, Rejected, Response, Scored, Segment
from cards.methods.base import Method, Request
from cards.rewards.base import Reward
from cards.sampling import inner_seed


@dataclass(slots=True)
class Drawn:
    """A response of the inner method. Its segments are withheld until a response is chosen."""

    kept: list[Accepted | Fallback] = field(default_factory=list)
    rejected: set[tuple[int, int]] = field(default_factory=set)  # (position, candidate) of rejected candidates
    response: Response = field(default_factory=Response)

    @property
    def candidate(self) -> Segment:
        """The whole response as one segment."""
        return replace(self.kept[-1].segment, text=self.response.text, token_ids=self.response.token_ids)

    def rejections(self) -> Iterator[Event]:
        """Yield the rejections of the segments, for a response that is not chosen."""
        for event in self.kept:
            if (event.position, event.candidate) not in self.rejected:
                yield Rejected(event.position, event.candidate, event.segment)


@dataclass(frozen=True, slots=True)
class Drawing:
    """Draws responses of `inner`, each with its own seed, and scores them by `scorer` if there is one.

    Candidate c of response i of at most `count` has the number c count + i in the events.
    """

    inner: Method
    request: Request
    engine: Engine
    reward: Reward | None
    scorer: Reward | None
    count: int

    async def draw(self, numbers: Sequence[int], drawn: list[Drawn]) -> AsyncGenerator[Event, None]:
        """Yield the events of these responses, concurrently and without the acceptances, and append them to `drawn`."""
        found = [Drawn() for _ in numbers]
        streams = [self._stream(number, one) for number, one in zip(numbers, found, strict=True)]
        async with aclosing(merged(streams)) as events:
            async for event in events:
                yield event
        drawn += found

    async def _stream(self, number: int, drawn: Drawn) -> AsyncGenerator[Event, None]:
        innermost = len(self.inner.nest) == 1  # others wait for the responses of their own inner method
        async with places(self.engine) if innermost else nullcontext(), aclosing(self._draw(number, drawn)) as events:
            async for event in events:
                yield event

    async def _draw(self, number: int, drawn: Drawn) -> AsyncGenerator[Event, None]:
        request = replace(self.request, seed=inner_seed(self.request.seed, number))
        async with aclosing(self.inner.stream(request, self.engine, self.reward)) as events:
            async for event in events:
                assert not isinstance(event, Done)
                event = replace(event, candidate=event.candidate * self.count + number)
                if isinstance(event, Proposed):
                    event = replace(event, parent=self._parent(event, number, drawn))
                if isinstance(event, Accepted | Fallback):
                    drawn.kept.append(event)
                    drawn.response += event.segment
                    continue
                if isinstance(event, Rejected):
                    drawn.rejected.add((event.position, event.candidate))
                yield event
        if self.scorer is not None:
            [score] = await self.scorer.score(request.prompt, [drawn.response])
            last = drawn.kept[-1]
            drawn.kept[-1] = replace(last, segment=replace(last.segment, reward=score))
            yield Scored(last.position, last.candidate, drawn.kept[-1].segment)

    def _parent(self, event: Proposed, number: int, drawn: Drawn) -> tuple[int, int] | None:
        """Return the candidate that a candidate of response `number` continues, with its number in the events."""
        if event.parent is not None:
            position, candidate = event.parent
            return position, candidate * self.count + number
        return (drawn.kept[-1].position, drawn.kept[-1].candidate) if drawn.kept else None


async def merged(streams: Sequence[AsyncGenerator[Event, None]]) -> AsyncGenerator[Event, None]:
    """Yield the events of concurrent streams as they come. An error in one stream ends all of them."""
    events: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()

    async def follow(stream: AsyncGenerator[Event, None]) -> None:
        try:
            async with aclosing(stream):
                async for event in stream:
                    events.put_nowait(event)
            events.put_nowait(None)
        except BaseException as error:
            events.put_nowait(error)
            if not isinstance(error, Exception):
                raise

    tasks = [asyncio.create_task(follow(stream)) for stream in streams]
    try:
        running = len(tasks)
        while running:
            event = await events.get()
            if isinstance(event, BaseException):
                raise event
            if event is None:
                running -= 1
            else:
                yield event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


_places: WeakKeyDictionary[Engine, WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]] = WeakKeyDictionary()


def places(engine: Engine) -> asyncio.Semaphore:
    """Return the semaphore of inner responses in progress on an engine, in this event loop: as many as it has rows.

    With more of them than cache slots, each would lose its prefix to the others between its calls.
    """
    loops = _places.setdefault(engine, WeakKeyDictionary())
    return loops.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(engine.rows))
