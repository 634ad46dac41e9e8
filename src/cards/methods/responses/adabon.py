"""AdaBoN: best-of-n whose number of responses depends on the prompt (Raman et al., arXiv 2505.12050)."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from cards.engines.base import Engine
from cards.errors import check
from cards.events import Event, Response, Segment
from cards.methods.base import Request, Sampled, argmax, required
from cards.methods.responses.driver import propose_responses, rewards_of, verdicts
from cards.rewards.base import Reward
from cards.settings import setting

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POINTS = 512  # of the numerical integrals


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaBoN(Sampled):
    """Run best-of-n, with n chosen for each prompt from the rewards of the first `pilots` responses.

        F    = kernel density estimate of the rewards of d = `pilots` responses (Gaussian kernel, Scott's bandwidth)
        g(j) = E[max(b, R_1, .., R_j)] - E[max(b, R_1, .., R_j-1)],   R ~ F,  b the best reward so far
        m    = the largest j with g(j) >= price, at most n - d
        response: the best of all d + m responses

    The paper divides a budget among the prompts of a batch so that the last response of each has the same expected gain. That
    gain is `price`, in units of the reward: with it, requests are independent, and the budget results from the price.
    """

    name: ClassVar[str] = "adabon"
    family: ClassVar[str] = "responses"
    whole: ClassVar[bool] = True
    summary: ClassVar[str] = "Run best-of-n with as many responses as the rewards of the first ones justify."

    n: int = setting(32, help="Maximum number of responses.", at_least=1, typical=(1, 64), client_at_most=64)
    pilots: int = setting(4, help="Number of responses that decide on the others.", at_least=2, typical=(2, 16))
    price: float = setting(
        0.1, help="Smallest expected gain of reward that justifies a further response.", above=0, typical=(0.01, 1)
    )

    def validate(self) -> None:
        check(self.pilots <= self.n, f"pilots must be between 2 and n = {self.n}, got {self.pilots}.")

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        reward = required(reward, self)
        candidates: list[Segment] = []
        ask = replace(request.ask(Response()), sampling=self.sampling, n=self.pilots)
        async with aclosing(propose_responses(request.prompt, ask, engine, reward, candidates)) as events:
            async for event in events:
                yield event
        if more := self.more(rewards_of(candidates)):
            ask = replace(ask, first=self.pilots, n=more)
            async with aclosing(propose_responses(request.prompt, ask, engine, reward, candidates)) as events:
                async for event in events:
                    yield event
        for event in verdicts(candidates, argmax(candidates), request.trace):
            yield event

    def more(self, rewards: Sequence[float]) -> int:
        """Return the number of further responses after pilots with these rewards."""
        gains = expected_gains(rewards, self.n - len(rewards))
        return int((gains >= self.price).sum())  # they fall


def expected_gains(rewards: Sequence[float], most: int) -> NDArray[np.float64]:
    """Return the expected gain in the best reward by the j-th further response, [most], under a kernel density estimate."""
    import numpy as np

    values = np.array(rewards)
    width = values.std(ddof=1) * len(values) ** -0.2  # Scott's rule
    if not (width > 0 and most):
        return np.zeros(most)
    best = values.max()
    grid = np.linspace(best, best + 8 * width, POINTS)
    scaled = (grid[:, None] - values) / (width * math.sqrt(2))
    law = (1 + np.vectorize(math.erf)(scaled)).mean(1) / 2  # F on the grid
    powers = law ** np.arange(most)[:, None]
    return np.asarray(np.trapezoid(powers * (1 - law), grid, axis=1))  # E[(R - max(b, ..))+] = integral of F^j (1 - F)
