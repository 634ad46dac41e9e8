"""Sequential Monte Carlo: particles weighted and resampled by the reward so far (arXiv 2604.16453)."""

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
    """Sample from q(y) exp(r(x, y) / beta) / Z, approximately; the error falls with the number of particles N.

        w_i   <- w_i exp((r(x, y_i,1:k) - r(x, y_i,1:k-1)) / beta)   after segment k of particle i, with r = 0 before the first
        resample (systematic) when the effective sample size (sum w)^2 / sum w^2 < resample N
        response one particle, picked by its weight when all are finished

    The product of the mean weights before each resampling and at the end is an unbiased estimate of Z = E_q[exp(r / beta)],
    for every N. One particle is plain sampling. `resample` 0 never resamples (importance sampling), 1 always does.
    `boundary` replaces the entropy rule of CARDS with the LM's tau_u.

    This is the variant of the paper that scores prefixes only: no lookahead and no Metropolis-Hastings moves.
    """

    name: ClassVar[str] = "smc"
    summary: ClassVar[str] = "Weight and resample incomplete responses by their reward (sequential Monte Carlo)."

    particles: int = setting(
        8, help="Number of responses generated concurrently.", at_least=1, typical=(1, 32), client_at_most=64
    )
    beta: float = setting(
        0.7, help="Softness of the weights; lower gives high rewards more weight.", above=0, typical=(0.05, 3)
    )
    resample: float = setting(
        0.5, help="Effective fraction of the particles below which they are resampled.", at_least=0, at_most=1
    )
    boundary: Boundary | None = setting(None, help="Rule that ends a segment (entropy: the rule of CARDS).", advanced=True)

    def search(self, weights: Weights, entropy_threshold: float) -> Search:
        """Return the search that updates these weights."""
        boundary = self.boundary or Entropy(threshold=entropy_threshold)
        plan = chain([(boundary, self.particles)], repeat((boundary, 1)))
        return Search(plan, weights.keep, self.sampling, weights.choose)

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        search = self.search(Weights(self.beta, self.resample, request.seed), engine.entropy_threshold)
        return search.stream(request, engine, required(reward, self))


@dataclass(slots=True)
class Weights:
    """The weights of a population of particles, and their estimate of log Z."""

    beta: float
    resample: float
    seed: int
    rewards: Sequence[float] = ()  # of the particles at the last update
    logs: Sequence[float] = ()  # log weights since the last resampling
    settled: float = 0.0  # log of the product of mean weights up to the last resampling
    steps: int = 0

    @property
    def log_evidence(self) -> float:
        """Return the log of the unbiased estimate of E_q[exp(r / beta)], after the search."""
        highest = max(self.logs)
        return self.settled + highest + math.log(math.fsum(math.exp(x - highest) for x in self.logs) / len(self.logs))

    def keep(self, rewards: Sequence[float]) -> list[int]:
        """Return the indices of the particles to keep: resampled by weight, or each once if the weights are even enough."""
        p = self.weigh(rewards)
        self.steps += 1
        if 1 / sum(w * w for w in p) >= self.resample * len(p):
            return list(range(len(p)))
        [u] = uniforms(self.seed, self.steps, 0, 1, RESAMPLING)
        chosen = self._pick(p, [(i + u) / len(p) for i in range(len(p))])
        self.settled, self.rewards, self.logs = self.log_evidence, [self.rewards[i] for i in chosen], [0.0] * len(p)
        return chosen

    def choose(self, rewards: Sequence[float]) -> int:
        """Return the index of one particle, picked by its weight."""
        return self._pick(self.weigh(rewards), uniforms(self.seed, 0, 0, 1, RESAMPLING).tolist())[0]

    def weigh(self, rewards: Sequence[float]) -> list[float]:
        """Update the weights by the new rewards of the particles, and return them normalized."""
        zeros = [0.0] * len(rewards)  # before the first update
        pairs = zip(self.logs or zeros, rewards, self.rewards or zeros, strict=True)
        self.logs = [x + (r - previous) / self.beta for x, r, previous in pairs]
        self.rewards = list(rewards)
        weights = [math.exp(x - max(self.logs)) for x in self.logs]
        return [w / math.fsum(weights) for w in weights]

    @staticmethod
    def _pick(p: Sequence[float], points: Sequence[float]) -> list[int]:
        """Return the index at each point in [0, 1) of the cumulative weights."""
        cdf = list(accumulate(p))
        return [min(bisect_right(cdf, point * cdf[-1]), len(p) - 1) for point in points]
