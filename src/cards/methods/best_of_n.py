"""Best-of-N sampling."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import ClassVar

from cards.engines.base import Engine
from cards.errors import check
from cards.events import Accepted, Event, Proposed, Rejected, Response, Scored, Segment
from cards.methods.base import Method, Request, argmax, required
from cards.rewards.base import Reward
from cards.sampling import Sampling
from cards.usage import meter


@dataclass(frozen=True, slots=True)
class BestOfN(Method):
    """argmax of r(x, y_i) over y_1 .. y_n drawn from the LM; the first of equals."""

    name: ClassVar[str] = "best-of-n"

    n: int = 8
    temperature: float = 0.7
    top_k: int | None = 40
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check(self.n >= 1, f"n must be at least 1, not {self.n}.")
        self.sampling  # noqa: B018  (checks its settings)

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p)

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        reward = required(reward, self)
        answers: list[Segment] = []
        meter().add(rounds=1)
        ask = replace(request.ask(Response()), sampling=self.sampling, n=self.n)
        async with aclosing(engine.propose(ask)) as batches:
            async for batch in batches:
                rewards = await reward.score(request.prompt, [Response() + segment for segment in batch])
                for segment, r in zip(batch, rewards, strict=True):
                    yield Proposed(0, len(answers), segment)
                    answers.append(replace(segment, reward=r))
                    yield Scored(0, len(answers) - 1, answers[-1])
        best = argmax(answers)
        others = [(i, s) for i, s in enumerate(answers) if i != best]
        for i, segment in others:
            yield Rejected(0, i, segment)
        rejected = tuple(s for _, s in others) if request.trace else ()
        yield Accepted(0, best, replace(answers[best], candidates=self.n, rejected=rejected))
