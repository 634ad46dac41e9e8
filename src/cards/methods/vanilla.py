"""Plain sampling from the LM, the baseline of all methods."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import ClassVar

from cards.boundaries import Boundary, FixedLength, Whole
from cards.engines.base import Engine
from cards.events import Accepted, Event, Proposed, Response
from cards.methods.base import Request, Sampled, propose
from cards.rewards.base import Reward
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Vanilla(Sampled):
    """Sample y ~ q, the LM under temperature, top_k and top_p. A segment is emitted every `chunk` tokens."""

    name: ClassVar[str] = "vanilla"
    family: ClassVar[str] = "plain"
    summary: ClassVar[str] = "Sample from the model."
    needs: ClassVar[frozenset[str]] = frozenset({"segments"})

    chunk: int | None = setting(
        16, help="Number of tokens per emitted segment (none: one segment at the end).", at_least=1, advanced=True
    )

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        boundary: Boundary = Whole() if self.chunk is None else FixedLength(maximum=self.chunk)
        response, index = Response(), 0
        while response.finish_reason is None:
            ask = replace(request.ask(response), boundary=boundary, sampling=self.sampling, segment=index)
            async with aclosing(propose(engine, ask)) as batches:
                async for [segment] in batches:
                    yield Proposed(index, 0, segment)
                    yield Accepted(index, 0, segment)
                    response = response + segment
            index += 1
