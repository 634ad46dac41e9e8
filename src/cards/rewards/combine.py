"""Combinations of rewards: weighted sum, minimum, and the pessimistic mean of an ensemble."""

from __future__ import annotations

import asyncio
import math
import statistics
from abc import abstractmethod
from collections.abc import Awaitable, Iterable, Mapping, Sequence

from cards.errors import SettingError, UnknownNameError, check
from cards.events import Prompt, Response
from cards.rewards.base import Reward
from cards.rewards.scale import shared_scale
from cards.rewards.weights import PartStatistics


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
    """The weighted sum of rewards, sum_i w_i r_i. A mean of probabilities (the weights sum to 1) is one too.

    `names` are the names of the rewards in `with_weights`, by default their own. `statistics` are those of their scores for
    plain responses, from which the target for other weights follows.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        weights: Sequence[float],
        *,
        target: float | None = None,
        names: Sequence[str] = (),
        statistics: PartStatistics | None = None,
    ) -> None:
        super().__init__(rewards, target=target)
        self.name = " + ".join(names) or self.name
        self.names, self.statistics = tuple(names) or tuple(reward.name for reward in rewards), statistics
        check(len(self.names) == len(rewards), f"A sum of {len(rewards)} rewards needs as many names, got {len(self.names)}.")
        check(
            statistics is None or len(statistics.mean) == len(rewards),
            "The statistics are those of a reward with another number of parts. Calibrate this reward.",
        )
        check(all(map(math.isfinite, weights)), f"Weights must be finite numbers, got {tuple(weights)}.")
        check(len(weights) == len(rewards), f"A sum of {len(rewards)} rewards needs as many weights, got {len(weights)}.")
        self.weights = tuple(weights)
        if self.scale == "probability" and not (min(weights) >= 0 and math.isclose(math.fsum(weights), 1)):
            self.scale = "unbounded"

    @classmethod
    def of(cls, rewards: Sequence[Reward]) -> WeightedSum:
        """Return the unweighted sum. Its target is the sum of the targets, if all rewards have one."""
        targets = [reward.target for reward in rewards if reward.target is not None]
        return cls(rewards, [1.0] * len(rewards), target=sum(targets) if len(targets) == len(rewards) else None)

    def with_weights(self, weights: Mapping[str, float]) -> WeightedSum:
        """Return the sum of the same rewards with these weights, by name; the others stay. The target follows the weights.

        Raises UnknownNameError or SettingError.
        """
        check(len(set(self.names)) == len(self.names), f"Parts of a reward need different names, got {', '.join(self.names)}.")
        for name in weights:
            if name not in self.names:
                raise UnknownNameError("part of the reward", name, self.names)
        chosen = [weights.get(name, own) for name, own in zip(self.names, self.weights, strict=True)]
        check(any(chosen), "At least one weight must differ from 0.")
        made = WeightedSum(self.rewards, chosen, names=self.names, statistics=self.statistics)
        made.target = self.target if made.weights == self.weights else self._target_for(made.weights)
        return made

    def follow(self, weights: Sequence[float], target: float) -> float:
        """Return the target reward for these weights, given the one for the weights of this sum.

        Raises SettingError if it does not follow, because the statistics are not known.
        """
        if tuple(weights) == self.weights:
            return target
        if self.statistics is None:
            raise SettingError(
                "The target reward does not follow the weights, because no statistics of the parts are known: give a target "
                "with the weights, or calibrate the reward (`cards calibrate`) and use the profile."
            )
        return self.statistics.target(weights, self.weights, target)

    def _target_for(self, weights: Sequence[float]) -> float | None:
        """Return the target from the statistics, else the weighted sum of the targets of the rewards, if all have one."""
        if self.statistics is not None and self.target is not None:
            return self.follow(weights, self.target)
        targets = [reward.target for reward in self.rewards if reward.target is not None]
        return sum(w * t for w, t in zip(weights, targets, strict=True)) if len(targets) == len(self.rewards) else None

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
