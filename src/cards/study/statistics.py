"""Statistics over prompts: means and shares with confidence intervals, paired comparisons, agreement of raters."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import comb, inf, sqrt
from statistics import NormalDist, fmean
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

K = TypeVar("K", str, int)
V = TypeVar("V")
CONFIDENCE, RESAMPLES, SEED = 0.95, 2000, 0
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
# Quantiles of Student's t at (1 + CONFIDENCE) / 2 for 1, 2, ... 18 degrees of freedom.
# fmt: off
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262,
     2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101)
# fmt: on
FEW = len(T) + 2  # bootstrap intervals over fewer prompts are widened
UNBOUNDED = (-inf, inf)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over prompts and its confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ScoredResponse:
    """A response and its score, for paired comparisons."""

    prompt: str
    seed: int
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A paired comparison with a baseline: shares of wins, ties and losses, and the mean difference in score."""

    pairs: int
    win: Estimate
    tie: Estimate
    loss: Estimate
    gain: Estimate


@dataclass(frozen=True, slots=True)
class Agreement:
    """The agreement of two raters: the share of equal labels, and Cohen's kappa (None if neither rater varies)."""

    prompts: int
    share: Estimate
    kappa: Estimate | None


def grouped(values: Iterable[tuple[K, V]]) -> dict[K, list[V]]:
    """Return the values of each key, from (key, value) pairs, with the keys sorted."""
    groups: dict[K, list[V]] = {}
    for key, value in values:
        groups.setdefault(key, []).append(value)
    return {key: groups[key] for key in sorted(groups)}


def interval_name(prompts: int) -> str:
    """Return what the bootstrap intervals of this number of prompts are, for headings."""
    widened = f", widened by Student's t for fewer than {FEW} prompts" if prompts < FEW else ""
    return f"95% interval over prompts{widened}"


def bootstrap(count: int, resamples: int) -> NDArray[np.float64]:
    """Return weights of items, [1 + resamples, count]: equal weights in row 0, then those of bootstrap samples."""
    draws = np.random.default_rng(SEED).multinomial(count, [1 / count] * count, resamples)
    return np.concatenate([np.ones((1, count)), draws]) / count


def with_interval(
    values: Sequence[float] | NDArray[np.float64], prompts: int, within: tuple[float, float] = UNBOUNDED
) -> Estimate:
    """Return the first value, with the percentile interval of the others, its values for resamples of this many prompts.

    Percentile intervals of few prompts are too narrow. So for fewer than 20 prompts both sides are multiplied by
    t sqrt(n / (n - 1)) / z, which turns the interval of a mean of normal values into Student's. `within` is the range of the
    value.
    """
    value = float(values[0])
    low, high = np.quantile(values[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    wider = T[prompts - 2] * sqrt(prompts / (prompts - 1)) / Z if 2 <= prompts < FEW else 1.0
    low, high = (value + wider * (end - value) for end in (low, high))
    return Estimate(value, float(max(low, within[0])), float(min(high, within[1])))


def estimate(values: Iterable[tuple[str, float]]) -> Estimate | None:
    """Return the mean over prompts of each prompt's mean, from (prompt, value) pairs; None if there are no pairs.

    The interval is a bootstrap over prompts, because responses to the same prompt are not independent.
    """
    by_prompt = grouped(values)
    if not by_prompt:
        return None
    means = np.array([np.mean(group) for group in by_prompt.values()])
    draws = np.random.default_rng(SEED).integers(len(means), size=(RESAMPLES, len(means)))
    return with_interval([means.mean(), *means[draws].mean(axis=1)], len(means))


def compare(
    responses: Iterable[ScoredResponse], baseline: Iterable[ScoredResponse], tolerance: float = 0.0
) -> Comparison | None:
    """Compare responses with the baseline's, paired by prompt and seed. Return None if there are no pairs.

    Equal texts, and scores at most `tolerance` apart, are ties.
    """
    base = {(a.prompt, a.seed): a for a in baseline}
    pairs = [(a, base[a.prompt, a.seed]) for a in responses if (a.prompt, a.seed) in base]
    sign = [(a.prompt, _sign(a, b, tolerance)) for a, b in pairs]
    gain = estimate((a.prompt, a.score - b.score) for a, b in pairs)
    win, tie, loss = (share((prompt, float(s == outcome)) for prompt, s in sign) for outcome in (1, 0, -1))
    if gain is None or win is None or tie is None or loss is None:
        return None
    return Comparison(len(pairs), win, tie, loss, gain)


def _sign(a: ScoredResponse, b: ScoredResponse, tolerance: float) -> int:
    if a.text == b.text or abs(a.score - b.score) <= tolerance:
        return 0
    return 1 if a.score > b.score else -1


def by_prompt(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return the mean of each prompt's values, from (prompt, value) pairs."""
    return {prompt: fmean(group) for prompt, group in grouped(values).items()}


def share(values: Iterable[tuple[str, float]]) -> Estimate | None:
    """Return the mean over prompts of (prompt, value between 0 and 1) pairs, with the Wilson interval for this many prompts.

    A mean over several responses varies at most as much as a single 0 or 1, so the interval is never too narrow. Unlike a
    bootstrap interval, it does not vanish if all prompts agree.
    """
    means = by_prompt(values)
    if not means:
        return None
    n, p, z = len(means), fmean(means.values()), Z
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Estimate(p, min(p, max(0.0, middle - half)), max(p, min(1.0, middle + half)))


def sign_test(values: Iterable[tuple[str, float]]) -> float | None:
    """Return the two-sided exact p-value of the sign test on (prompt, difference) pairs. Zero differences are omitted."""
    signs = [mean > 0 for mean in by_prompt(values).values() if mean]
    n, k = len(signs), min(sum(signs), len(signs) - sum(signs))
    return min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n) if n else None


def agreement(labels: Iterable[tuple[str, Hashable, Hashable]]) -> Agreement | None:
    """Return the agreement of two raters, from (prompt, label, other label) triples; None if there are none.

    The interval of kappa is a bootstrap over prompts.
    """
    triples = list(labels)
    if not triples:
        return None
    names = {label: i for i, label in enumerate(dict.fromkeys(label for _, *both in triples for label in both))}
    prompts = {prompt: i for i, prompt in enumerate(sorted({prompt for prompt, *_ in triples}))}
    tables = np.zeros((len(prompts), len(names), len(names)))
    for prompt, one, other in triples:
        tables[prompts[prompt], names[one], names[other]] += 1

    counts = np.einsum("rp,pij->rij", bootstrap(len(prompts), RESAMPLES), tables)
    counts /= counts.sum(axis=(1, 2), keepdims=True)
    observed, chance = counts.trace(axis1=1, axis2=2), (counts.sum(axis=1) * counts.sum(axis=2)).sum(axis=1)
    varied = chance < 1 - 1e-12
    kappas = (observed[varied] - chance[varied]) / (1 - chance[varied])
    equal = share((prompt, float(one == other)) for prompt, one, other in triples)
    assert equal is not None
    kappa = with_interval(kappas, len(prompts), (-1.0, 1.0)) if varied[0] else None
    return Agreement(len(prompts), equal, kappa)
