"""Weights of a sum of rewards: their names, and the target reward r* for other weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from cards.errors import check


@dataclass(frozen=True, slots=True)
class PartStatistics:
    """The mean [parts] and the covariance [parts, parts] of the rewards of plain responses. Raises SettingError."""

    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        numbers = [*self.mean, *(value for row in self.covariance for value in row)]
        check(
            len(self.mean) > 0
            and len(self.covariance) == len(self.mean)
            and all(len(row) == len(self.mean) for row in self.covariance)
            and all(map(math.isfinite, numbers)),
            "The statistics of the parts of a reward must be a mean and a covariance of as many finite numbers.",
        )

    @classmethod
    def of(cls, samples: Sequence[Sequence[float]]) -> PartStatistics:
        """Return the statistics of samples [responses, parts], of which there are at least two. Raises SettingError."""
        check(len(samples) > 1, f"Statistics of the parts of a reward need at least 2 responses, got {len(samples)}.")
        columns = list(zip(*samples, strict=True))
        mean = [fmean(column) for column in columns]
        centred = [[value - m for value in column] for column, m in zip(columns, mean, strict=True)]
        count = len(samples) - 1
        rows = [tuple(_dot(one, other) / count for other in centred) for one in centred]
        return cls(tuple(mean), tuple(rows))

    def target(self, weights: Sequence[float], before: Sequence[float], target: float) -> float:
        """Return the target reward for weights w that is as demanding as `target` is for the weights `before`, w0.

            r*(w) = w . m + (r* - w0 . m) sqrt(w S w / w0 S w0)

        m and S are the mean and the covariance of the parts: both targets are the same number of standard deviations above
        the mean of plain responses. If their rewards are normally distributed, both are the same quantile.
        Raises SettingError if the sum does not vary with the weights `before`.
        """
        variance = self._variance(before)
        check(variance > 0, "The target reward cannot follow the weights, because all plain responses have the same reward.")
        distance = (target - _dot(before, self.mean)) / math.sqrt(variance)
        return _dot(weights, self.mean) + distance * math.sqrt(max(0.0, self._variance(weights)))

    def _variance(self, weights: Sequence[float]) -> float:
        return _dot(weights, [_dot(row, weights) for row in self.covariance])


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))
