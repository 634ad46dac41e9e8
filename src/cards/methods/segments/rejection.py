"""Item-level rejection sampling: whole answers against one constant threshold."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import ClassVar

from cards.acceptance import Acceptance, Verdict
from cards.engines.base import Engine
from cards.errors import check
from cards.events import Event, Response
from cards.methods.base import Method, Rejection, Request, Width, check_width, required, target_of
from cards.rewards.base import Reward
from cards.sampling import Sampling


@dataclass(frozen=True, slots=True)
class RejectionSampling(Method):
    """Accept an answer if u < min(1, exp((r(x, y) - r*) / beta)); after `max_candidates` rejections keep the best.

    Without fallbacks the answer follows q(y) exp(min(r, r*) / beta), normalised. The item-level baseline of the CARDS
    paper (arXiv 2406.16306). temperature None means beta.
    """

    name: ClassVar[str] = "rejection-sampling"

    target: float | None = None
    beta: float = 0.7
    acceptance: Acceptance = "soft"
    max_candidates: int = 20
    temperature: float | None = None
    top_k: int | None = 40
    top_p: float = 1.0
    width: Width = "auto"

    def __post_init__(self) -> None:
        check(self.max_candidates >= 1, f"max_candidates must be at least 1, not {self.max_candidates}.")
        check_width(self.width)
        self.verdict, self.sampling  # noqa: B018  (each checks its own settings)

    @property
    def verdict(self) -> Verdict:
        return Verdict(self.beta, self.acceptance)

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.beta if self.temperature is None else self.temperature, self.top_k, self.top_p)

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        reward = required(reward, self)
        target = target_of(self.target, reward)
        search = Rejection(self.verdict.passes, lambda tokens: target, self.max_candidates, False, self.width)
        ask = replace(request.ask(Response()), sampling=self.sampling)
        async for event in search.stream(request, ask, Response(), 0, engine, reward):
            yield event
