"""Sequential Monte Carlo: particles weighted and resampled by the reward of the text so far (arXiv 2604.16453)."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, repeat
from typing import ClassVar

from cards.boundaries import Boundary, Entropy
from cards.engines.base import Engine
from cards.events import Event
from cards.methods.base import Request, required
from cards.methods.search.driver import Search, SearchMethod
from cards.rewards.base import Reward
from cards.sampling import RESAMPLING, uniforms
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class SMC(SearchMethod):
    """Draws from q(y) exp(r(x, y) / beta) / Z, the better the more particles there are:

        w_i   <- w_i exp((r(x, y_i,1:k) - r(x, y_i,1:k-1)) / beta)   after segment k of particle i,   r of no segment: 0
        resample (systematic) when the effective sample size (sum w)^2 / sum w^2 < resample N
        answer   one particle, drawn by its weight once all are finished

    The product of the mean weights before each resampling, times the last one, is an unbiased estimate of
    Z = E_q[exp(r / beta)], at any N. One particle is plain sampling; `resample` 0 never resamples (importance sampling),
    1 always does. `boundary` replaces the entropy rule of CARDS with the LM's tau_u.

    Of the paper this is the variant that looks at prefixes alone: no lookahead, no Metropolis-Hastings moves.
    """

    name: ClassVar[str] = "smc"
    summary: ClassVar[str] = "Sequential Monte Carlo: particles weighted and resampled by the reward of the text so far."

    particles: int = setting(8, help="Responses that grow side by side.", at_least=1, typical=(1, 32), client_at_most=64)
    beta: float = setting(0.7, help="Softness of the weights by reward; lower is stricter.", above=0, typical=(0.05, 3))
    resample: float = setting(
        0.5, help="Resample when the effective fraction of the particles is below this.", at_least=0, at_most=1
    )
    boundary: Boundary | None = setting(None, help="Rule that ends a segment (entropy: the rule of CARDS).", advanced=True)

    def search(self, weights: Weights, entropy_threshold: float) -> Search:
        boundary = self.boundary or Entropy(threshold=entropy_threshold)
        plan = chain([(boundary, self.particles)], repeat((boundary, 1)))
        return Search(plan, weights.keep, self.sampling, weights.choose)

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        search = self.search(Weights(self.beta, self.resample, request.seed), engine.entropy_threshold)
        return search.stream(request, engine, required(reward, self))


@dataclass(slots=True)
class Weights:
    """The weights of a population, and the estimate of log Z that they give."""

    beta: float
    resample: float
    seed: int
    rewards: Sequence[float] = ()  # of the particles, when last weighted
    logs: Sequence[float] = ()  # of the weights since the last resampling
    settled: float = 0.0  # log of the product of mean weights up to it
    steps: int = 0

    @property
    def log_evidence(self) -> float:
        """log of the unbiased estimate of E_q[exp(r / beta)], once the search is over."""
        highest = max(self.logs)
        return self.settled + highest + math.log(math.fsum(math.exp(x - highest) for x in self.logs) / len(self.logs))

    def keep(self, rewards: Sequence[float]) -> list[int]:
        """The particles that live on: each as often as its weight says, or each once where weights are even enough."""
        p = self.weigh(rewards)
        self.steps += 1
        if 1 / sum(w * w for w in p) >= self.resample * len(p):
            return list(range(len(p)))
        [u] = uniforms(self.seed, self.steps, 0, 1, RESAMPLING)
        chosen = self._drawn(p, [(i + u) / len(p) for i in range(len(p))])
        self.settled, self.rewards, self.logs = self.log_evidence, [self.rewards[i] for i in chosen], [0.0] * len(p)
        return chosen

    def choose(self, rewards: Sequence[float]) -> int:
        """One particle, drawn by its weight."""
        return self._drawn(self.weigh(rewards), uniforms(self.seed, 0, 0, 1, RESAMPLING).tolist())[0]

    def weigh(self, rewards: Sequence[float]) -> list[float]:
        """The normalised weights after these rewards of the particles."""
        nought = [0.0] * len(rewards)  # of particles that were never weighted
        pairs = zip(self.logs or nought, rewards, self.rewards or nought, strict=True)
        self.logs = [x + (r - before) / self.beta for x, r, before in pairs]
        self.rewards = list(rewards)
        weights = [math.exp(x - max(self.logs)) for x in self.logs]
        return [w / math.fsum(weights) for w in weights]

    @staticmethod
    def _drawn(p: Sequence[float], places: Sequence[float]) -> list[int]:
        """The numbers at these places in [0, 1) of the cumulated weights."""
        cdf = list(accumulate(p))
        return [min(bisect_right(cdf, place * cdf[-1]), len(p) - 1) for place in places]
