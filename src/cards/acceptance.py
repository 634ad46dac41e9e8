"""The rising reward threshold and the quasi-rejection test of CARDS (arXiv 2406.16306, section 4.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from cards.errors import check

Acceptance = Literal["soft", "hard"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """The reward threshold tau(t) = min(r*, r0 + t (r* - r0) / n), with r0 = (1 - alpha) r(x) + alpha r*.

    `target` is r*, `floor` is r0, and `length` is n in tokens. t counts response tokens, including the candidate's.
    """

    target: float
    floor: float
    length: int

    @classmethod
    def from_prompt(cls, target: float, alpha: float, prompt_reward: float, length: int) -> Schedule:
        """Return the schedule for a prompt x with r(x) = `prompt_reward`."""
        return cls(target, (1 - alpha) * prompt_reward + alpha * target, length)

    def threshold(self, tokens: int) -> float:
        """Return tau after this number of response tokens."""
        return min(self.target, self.floor + tokens * (self.target - self.floor) / self.length)


def portion(share: float, count: int) -> Fraction:
    """Return share * count for the decimal number that `share` is written as: 0.29 of 100 is 29, not 28.999999999999996."""
    return Fraction(str(share)) * count


def quantile_of(rewards: Sequence[float], quantile: float) -> float:
    """Return the ceil(quantile m)-th smallest of m rewards: the smallest for 0, the largest for 1."""
    return sorted(rewards)[max(0, math.ceil(portion(quantile, len(rewards))) - 1)]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The test of a candidate with reward r at threshold tau.

    `soft` accepts it if u < min(1, exp((r - tau) / beta)), `hard` if r >= tau. Raises SettingError.
    """

    beta: float = 0.7
    kind: Acceptance = "soft"

    def __post_init__(self) -> None:
        check(0 < self.beta < math.inf, f"beta must be positive and finite, got {self.beta}.")
        check(self.kind in ("soft", "hard"), f"acceptance must be 'soft' or 'hard', got {self.kind!r}.")

    def passes(self, reward: float, threshold: float, u: float) -> bool:
        """Return whether the candidate is accepted; u is uniform in [0, 1). The log scale avoids overflow."""
        if self.kind == "hard" or reward >= threshold:
            return reward >= threshold
        gap = (reward - threshold) / self.beta  # NaN compares false
        return gap > -math.inf and (u == 0 or math.log(u) < gap)
