"""Item-level rejection sampling: complete responses against a constant threshold."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import ClassVar

from cards.acceptance import Schedule
from cards.engines.base import Engine
from cards.events import Event, Response
from cards.methods.base import Request, required, target_of
from cards.methods.segments.driver import AcceptanceMethod, SegmentSampler
from cards.rewards.base import Reward
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectionSampling(AcceptanceMethod):
    """Accept a response y if u < min(1, exp((r(x, y) - r*) / beta)); after `max_candidates` rejections keep the best.

    Without fallbacks the response follows q(y) exp(min(r, r*) / beta), normalized. This is the item-level baseline of the
    CARDS paper (arXiv 2406.16306). `temperature` None means beta.
    """

    name: ClassVar[str] = "rejection-sampling"
    whole: ClassVar[bool] = True
    summary: ClassVar[str] = "Accept or reject complete responses by the test of CARDS against a constant threshold."

    max_candidates: int = setting(
        20, help="Number of responses before a fallback to the best one.", at_least=1, typical=(1, 64), client_at_most=256
    )

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        reward = required(reward, self)
        target = target_of(self.target, reward)
        constant = Schedule(target, target, request.max_tokens)
        sampler = SegmentSampler(self.verdict.passes, constant, self.max_candidates, False, self.width)
        ask = replace(request.ask(Response()), sampling=self.sampling)
        async for event in sampler.stream(request, ask, Response(), 0, engine, reward):
            yield event
