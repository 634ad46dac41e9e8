"""Best-of-Poisson (Khalaf et al., NeurIPS 2025, arXiv 2506.19248)."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from itertools import count
from typing import ClassVar

from cards.engines.base import Engine
from cards.events import Event
from cards.methods.base import Request
from cards.methods.responses.best_of_n import BestOfN
from cards.methods.responses.driver import ResponseMethod, choice_kl_bound
from cards.rewards.base import Reward
from cards.sampling import COUNT, uniforms
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOfPoisson(BestOfN):
    """Run best-of-n with a random number of responses, n = 1 + k, k ~ Poisson(mean).

    With F(r) the distribution of rewards under q and no ties, P(reward <= r) = F exp(mean (F - 1)): the density of the
    quantile F is (1 + mean F) exp(mean (F - 1)), close to that of the law q exp(c F), which has the least KL divergence from q
    at its mean quantile. A single number tunes the strength without steps. mean is mu in the paper. `n` limits the number.
    """

    name: ClassVar[str] = "best-of-poisson"
    summary: ClassVar[str] = "Run best-of-n with a random number of responses."

    n: int = setting(64, help="Maximum number of responses.", at_least=1, typical=(1, 64), client_at_most=64)
    mean: float = setting(8.0, help="Mean number of responses after the first.", at_least=0, at_most=500, typical=(0, 32))

    def count(self, seed: int) -> int:
        """Return the number of responses for a seed."""
        [u] = uniforms(seed, 0, 0, 1, COUNT)
        total, p = 0.0, math.exp(-self.mean)
        for k in count():
            total += p
            if u < total or k + 1 >= self.n:
                return k + 1
            p *= self.mean / (k + 1)
        raise AssertionError

    @property
    def kl_bound(self) -> float | None:
        if self.inner is not None:
            return None
        p, bound, rest = math.exp(-self.mean), 0.0, 1.0
        for n in range(1, self.n):  # the divergence of a mixture is at most the mean of the divergences
            bound, rest, p = bound + p * choice_kl_bound(n), rest - p, p * self.mean / n
        return bound + max(0.0, rest) * choice_kl_bound(self.n)

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        drawn = replace(self, n=self.count(request.seed))
        return ResponseMethod.stream(drawn, request, engine, reward)
