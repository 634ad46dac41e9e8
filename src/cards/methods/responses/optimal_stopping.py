"""Optimal stopping of best-of-n by the price of a response (Kalayci et al., arXiv 2510.01394)."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import ClassVar

from cards.engines.base import Engine
from cards.errors import check
from cards.events import Event, Response, Segment
from cards.methods.base import Request, Sampled, argmax, required
from cards.methods.responses.driver import propose_responses, rewards_of, verdicts
from cards.rewards.base import Reward
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimalStopping(Sampled):
    """Sample responses until the best reward reaches the reservation value of a further one.

        reservation value z:  E[(R - z)+] = price      R: the reward of a response
        stop when max_i r_i >= z, after at least `pilots` and at most n responses

    If the distribution of R is known, this is the optimal policy for the best reward minus the price of all responses
    (Weitzman's rule for Pandora's boxes). Here it is estimated: rewards above the median m are exponential, so

        s = (1 + bonus / sqrt(k)) mean (r_i - m)  over the k rewards above m
        z = m + s log(s / (2 price)),  or m + s - 2 price if s < 2 price

    bonus makes s an upper confidence bound, so that few rewards do not stop the search too early. price is in units of the
    reward. The paper has an exponential tail and an upper confidence bound too; the median, the form of the bound and the
    default values are ours.
    """

    name: ClassVar[str] = "optimal-stopping"
    family: ClassVar[str] = "responses"
    whole: ClassVar[bool] = True
    summary: ClassVar[str] = "Sample responses until a further one is not worth its price."

    n: int = setting(64, help="Maximum number of responses.", at_least=1, typical=(1, 64), client_at_most=64)
    price: float = setting(0.1, help="Price of a response, in units of the reward.", above=0, typical=(0.01, 1))
    pilots: int = setting(4, help="Minimum number of responses.", at_least=2, typical=(2, 16))
    bonus: float = setting(
        1.0, help="Width of the upper confidence bound, in standard errors.", at_least=0, typical=(0, 3), advanced=True
    )
    window: int = setting(1, help="Number of responses sampled between tests.", at_least=1, typical=(1, 16), advanced=True)

    def validate(self) -> None:
        check(self.pilots <= self.n, f"pilots must be between 2 and n = {self.n}, got {self.pilots}.")

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        reward = required(reward, self)
        candidates: list[Segment] = []
        while (count := len(candidates)) < self.n:
            if count and max(rewards_of(candidates)) >= self.reservation_value(rewards_of(candidates)):
                break
            n = min(self.window, self.n - count) if count else self.pilots
            ask = replace(request.ask(Response()), sampling=self.sampling, first=count, n=n)
            async with aclosing(propose_responses(request.prompt, ask, engine, reward, candidates)) as events:
                async for event in events:
                    yield event
        for event in verdicts(candidates, argmax(candidates), request.trace):
            yield event

    def reservation_value(self, rewards: Sequence[float]) -> float:
        """Return the estimate of z from the rewards so far."""
        middle = median(rewards)
        above = [r - middle for r in rewards if r > middle]
        if not above:
            return middle
        scale = (1 + self.bonus / math.sqrt(len(above))) * fmean(above)
        if scale < 2 * self.price:  # z lies below the median, where the upper half adds its mean excess to it
            return middle + scale - 2 * self.price
        return middle + scale * math.log(scale / (2 * self.price))
