"""Plain sampling from the LM, the baseline of everything."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import ClassVar

from cards.boundaries import Boundary, FixedLength, Whole
from cards.engines.base import Engine
from cards.errors import check
from cards.events import Accepted, Event, Proposed, Response
from cards.methods.base import Request, Sampled, propose
from cards.rewards.base import Reward


@dataclass(frozen=True, slots=True)
class Vanilla(Sampled):
    """y ~ q, the LM under temperature, top_k and top_p. Text is handed out every `chunk` tokens (None: at the end)."""

    name: ClassVar[str] = "vanilla"
    needs: ClassVar[frozenset[str]] = frozenset({"segments"})

    temperature: float = 0.7
    top_k: int | None = 40
    top_p: float = 1.0
    chunk: int | None = 16

    def __post_init__(self) -> None:
        check(self.chunk is None or self.chunk >= 1, f"chunk must be at least 1 token or None, not {self.chunk}.")
        self.sampling  # noqa: B018  (checks its settings)

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        boundary: Boundary = Whole() if self.chunk is None else FixedLength(maximum=self.chunk)
        response, position = Response(), 0
        while response.finish_reason is None:
            ask = replace(request.ask(response), boundary=boundary, sampling=self.sampling, segment=position)
            async with aclosing(propose(engine, ask)) as batches:
                async for [segment] in batches:
                    yield Proposed(position, 0, segment)
                    yield Accepted(position, 0, segment)
                    response = response + segment
            position += 1
