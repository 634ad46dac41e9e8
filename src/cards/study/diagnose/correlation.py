"""Correlation, within prompts, of two values of each response."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cards.study.statistics import SEED, Estimate, grouped, with_interval

Floats = NDArray[np.float64]

Item = tuple[int, float, float]  # number of the prompt, and two values of one text
RESAMPLES = 400


def correlation(items: Sequence[Item], *, ranks: bool = False) -> Estimate | None:
    """Return Pearson's correlation (Spearman's with `ranks`) of deviations from the prompt's mean, bootstrapped over prompts.

    The result is None if one of the values does not vary, or if there are fewer than three texts.
    """
    by_prompt = grouped((prompt, (x, y)) for prompt, x, y in items)
    groups = [np.array(pairs) - np.mean(pairs, axis=0) for pairs in by_prompt.values() if len(pairs) > 1]
    if sum(map(len, groups)) < 3:
        return None
    value = _coefficient(np.concatenate(groups), ranks)
    if value is None:
        return None
    draws = np.random.default_rng(SEED).integers(len(groups), size=(RESAMPLES, len(groups)))
    resampled = [_coefficient(np.concatenate([groups[i] for i in draw]), ranks) for draw in draws]
    return with_interval([value, *(x for x in resampled if x is not None)], len(groups), (-1.0, 1.0))


def _coefficient(pairs: Floats, ranks: bool) -> float | None:
    x, y = (_ranked(column) if ranks else column for column in pairs.T)
    return None if min(x.std(), y.std()) < 1e-12 else float(np.corrcoef(x, y)[0, 1])


def _ranked(values: Floats) -> Floats:
    """Return ranks. Equal values get their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return np.asarray((ends - (counts - 1) / 2)[inverse], np.float64)
