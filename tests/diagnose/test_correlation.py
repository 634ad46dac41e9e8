"""Correlations are within prompts, and those of scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cards.study.diagnose.correlation import correlation


def test_they_are_those_of_scipy_for_one_prompt() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    y = np.round(x + rng.normal(size=60))  # with ties
    items = [(0, float(a), float(b)) for a, b in zip(x, y, strict=True)]
    pearson, spearman = correlation(items), correlation(items, ranks=True)
    assert pearson is not None
    assert spearman is not None
    assert pearson.mean == pytest.approx(stats.pearsonr(x, y).statistic)
    assert spearman.mean == pytest.approx(stats.spearmanr(x, y).statistic)


def test_differences_between_prompts_do_not_count() -> None:
    rng = np.random.default_rng(0)
    items = [(n, 10.0 * n + a, 10.0 * n + b) for n in range(30) for a, b in rng.normal(size=(6, 2))]
    found = correlation(items)
    assert found is not None
    assert abs(found.mean) < 0.2
    assert found.low < 0 < found.high


def test_what_does_not_vary_has_none() -> None:
    assert correlation([(0, 1.0, float(i)) for i in range(9)]) is None
    assert correlation([(0, 1.0, 2.0)]) is None
