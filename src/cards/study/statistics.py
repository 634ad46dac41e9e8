"""Means over prompts with bootstrap confidence intervals, and paired comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

K = TypeVar("K", str, int)
V = TypeVar("V")
CONFIDENCE, RESAMPLES, SEED = 0.95, 2000, 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over prompts and its confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What a comparison looks at."""

    prompt: str
    seed: int
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Shares of pairs (same prompt, same seed) that are better, equal, worse than the baseline's, and the mean difference."""

    pairs: int
    win: Estimate
    tie: Estimate
    loss: Estimate
    gain: Estimate


def grouped(values: Iterable[tuple[K, V]]) -> dict[K, list[V]]:
    """The values of each key, of (key, value) pairs, keys in rising order: in whatever order they were found."""
    found: dict[K, list[V]] = {}
    for key, value in values:
        found.setdefault(key, []).append(value)
    return {key: found[key] for key in sorted(found)}


def bounds(samples: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """The percentile interval of resampled figures."""
    import numpy as np

    low, high = np.quantile(samples, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def estimate(values: Iterable[tuple[str, float]]) -> Estimate | None:
    """The mean over prompts of each prompt's mean, of (prompt, value) pairs, with a percentile bootstrap over prompts.

    Prompts are what is resampled: answers to one prompt under several seeds are not independent.
    """
    import numpy as np

    by_prompt = grouped(values)
    if not by_prompt:
        return None
    means = np.array([np.mean(own) for own in by_prompt.values()])
    draws = np.random.default_rng(SEED).integers(len(means), size=(RESAMPLES, len(means)))
    return Estimate(float(means.mean()), *bounds(means[draws].mean(axis=1)))


def compare(answers: Iterable[Answer], baseline: Iterable[Answer], tolerance: float = 0.0) -> Comparison | None:
    """Paired by prompt and seed; a tie is the same text, or scores at most `tolerance` apart. None if nothing pairs."""
    base = {(a.prompt, a.seed): a for a in baseline}
    pairs = [(a, base[a.prompt, a.seed]) for a in answers if (a.prompt, a.seed) in base]
    sign = [(a.prompt, _sign(a, b, tolerance)) for a, b in pairs]
    gain = estimate((a.prompt, a.score - b.score) for a, b in pairs)
    win, tie, loss = (estimate((prompt, float(s == wanted)) for prompt, s in sign) for wanted in (1, 0, -1))
    if gain is None or win is None or tie is None or loss is None:
        return None
    return Comparison(len(pairs), win, tie, loss, gain)


def _sign(a: Answer, b: Answer, tolerance: float) -> int:
    if a.text == b.text or abs(a.score - b.score) <= tolerance:
        return 0
    return 1 if a.score > b.score else -1
