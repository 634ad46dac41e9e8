"""Shares with Wilson intervals, the sign test, and agreement beyond chance. Prompts are what is counted."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from math import comb, sqrt
from statistics import NormalDist, fmean

from cards.study.statistics import CONFIDENCE, RESAMPLES, SEED, Estimate, bounds, grouped


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of two raters: the share of equal labels, and Cohen's kappa (None where neither rater varies)."""

    prompts: int
    share: Estimate
    kappa: Estimate | None


def by_prompt(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The mean of each prompt's values, of (prompt, value) pairs."""
    return {prompt: fmean(own) for prompt, own in grouped(values).items()}


def share(values: Iterable[tuple[str, float]]) -> Estimate | None:
    """The mean over prompts of (prompt, value between 0 and 1) pairs, with the Wilson interval of that many prompts.

    A prompt's mean over several answers varies at most as much as one answer that counts 0 or 1, so the interval is never too
    narrow on their account; and unlike a bootstrap it does not vanish where all prompts agree.
    """
    means = by_prompt(values)
    if not means:
        return None
    n, p, z = len(means), fmean(means.values()), NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Estimate(p, min(p, max(0.0, middle - half)), max(p, min(1.0, middle + half)))


def sign_test(values: Iterable[tuple[str, float]]) -> float | None:
    """Two-sided exact p that as many prompts gain as lose, of (prompt, difference) pairs; equal ones are left out."""
    signs = [mean > 0 for mean in by_prompt(values).values() if mean]
    n, k = len(signs), min(sum(signs), len(signs) - sum(signs))
    return min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n) if n else None


def agreement(labels: Iterable[tuple[str, Hashable, Hashable]]) -> Agreement | None:
    """Of (prompt, one rater's label, the other's); the interval of kappa is a percentile bootstrap over prompts."""
    import numpy as np

    found = list(labels)
    if not found:
        return None
    names = {label: i for i, label in enumerate(dict.fromkeys(label for _, *both in found for label in both))}
    prompts = {prompt: i for i, prompt in enumerate(sorted({prompt for prompt, *_ in found}))}
    tables = np.zeros((len(prompts), len(names), len(names)))
    for prompt, one, other in found:
        tables[prompts[prompt], names[one], names[other]] += 1

    draws = np.random.default_rng(SEED).multinomial(len(prompts), [1 / len(prompts)] * len(prompts), size=RESAMPLES)
    weights = np.concatenate([np.ones((1, len(prompts))), draws])
    counts = np.einsum("rp,pij->rij", weights, tables)
    counts /= counts.sum(axis=(1, 2), keepdims=True)
    seen, chance = counts.trace(axis1=1, axis2=2), (counts.sum(axis=1) * counts.sum(axis=2)).sum(axis=1)
    varied = chance < 1 - 1e-12
    kappas = (seen[varied] - chance[varied]) / (1 - chance[varied])
    equal = share((prompt, float(one == other)) for prompt, one, other in found)
    assert equal is not None
    if not varied[0]:
        return Agreement(len(prompts), equal, None)
    return Agreement(len(prompts), equal, Estimate(float(kappas[0]), *bounds(kappas)))
