"""Combinations of rewards: weighted sum, minimum, and the pessimistic mean of an ensemble."""

from __future__ import annotations

import asyncio
import math
import statistics
from abc import abstractmethod
from collections.abc import Awaitable, Iterable, Sequence

from cards.errors import check
from cards.events import Prompt, Response
from cards.rewards.base import Reward
from cards.rewards.scale import shared_scale


class Combination(Reward):
    """Base class: score with all rewards concurrently, then combine the scores of each response."""

    def __init__(self, rewards: Sequence[Reward], *, target: float | None = None) -> None:
        check(len(rewards) > 0, f"{type(self).__name__} needs at least one reward, got none.")
        self.rewards, self.target = tuple(rewards), target
        self.parts, self.scale = self.rewards, shared_scale(reward.scale for reward in rewards)
        self.context = min((r.context for r in rewards if r.context is not None), default=None)
        self.name = f"{type(self).__name__}({', '.join(r.name for r in rewards)})"

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        return await self._joined(reward.score(prompt, responses) for reward in self.rewards)

    async def rate_next(self, prompt: Prompt, response: Response, followers: Sequence[Response]) -> Sequence[float]:
        return await self._joined(reward.score_next(prompt, response, followers) for reward in self.rewards)

    async def _joined(self, scorings: Iterable[Awaitable[list[float]]]) -> list[float]:
        return [self.join(scores) for scores in zip(*await asyncio.gather(*scorings), strict=True)]

    @abstractmethod
    def join(self, scores: Sequence[float]) -> float:
        """Combine the scores of one response, in the order of the rewards."""


class WeightedSum(Combination):
    """The weighted sum of rewards, sum_i w_i r_i. A mean of probabilities (the weights sum to 1) is one too."""

    def __init__(self, rewards: Sequence[Reward], weights: Sequence[float], *, target: float | None = None) -> None:
        super().__init__(rewards, target=target)
        check(len(weights) == len(rewards), f"A sum of {len(rewards)} rewards needs as many weights, got {len(weights)}.")
        self.weights = tuple(weights)
        if self.scale == "probability" and not (min(weights) >= 0 and math.isclose(math.fsum(weights), 1)):
            self.scale = "unbounded"

    @classmethod
    def of(cls, rewards: Sequence[Reward]) -> WeightedSum:
        """Return the unweighted sum. Its target is the sum of the targets, if all rewards have one."""
        targets = [reward.target for reward in rewards if reward.target is not None]
        return cls(rewards, [1.0] * len(rewards), target=sum(targets) if len(targets) == len(rewards) else None)

    def join(self, scores: Sequence[float]) -> float:
        return sum(w * r for w, r in zip(self.weights, scores, strict=True))


class Minimum(Combination):
    """The lowest reward, min_i r_i."""

    def join(self, scores: Sequence[float]) -> float:
        return min(scores)


class Pessimistic(Combination):
    """The mean minus k population standard deviations of an ensemble. For probabilities, at least 0.

    Disagreement of the ensemble is a sign of reward hacking. Similar to uncertainty-weighted optimisation (arXiv 2310.02743),
    which subtracts the variance.
    """

    def __init__(self, rewards: Sequence[Reward], k: float = 1.0, *, target: float | None = None) -> None:
        super().__init__(rewards, target=target)
        check(k >= 0, f"k must not be negative, got {k}.")
        self.k = k

    def join(self, scores: Sequence[float]) -> float:
        bound = statistics.fmean(scores) - self.k * statistics.pstdev(scores)
        return max(0.0, bound) if self.scale == "probability" else bound
