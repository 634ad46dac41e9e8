"""Intervals and tests against scipy and against examples by hand."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from cards.study.statistics import agreement, share, sign_test


@pytest.mark.parametrize(("k", "n"), [(0, 4), (1, 3), (7, 10), (10, 10), (150, 300)])
def test_shares_have_wilson_intervals(k: int, n: int) -> None:
    found = share((f"{i}", float(i < k)) for i in range(n))
    expected = binomtest(k, n).proportion_ci(0.95, "wilson")
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((k / n, expected.low, expected.high))


def test_several_answers_to_a_prompt_count_as_one_prompt() -> None:
    assert share([("a", 1), ("a", 1), ("a", 1), ("b", 0)]) == share([("a", 1), ("b", 0)])
    assert sign_test([("a", 1), ("a", 1), ("b", 1), ("c", -1)]) == sign_test([("a", 1), ("b", 1), ("c", -1)])
    assert share([]) is None


@pytest.mark.parametrize(("wins", "losses"), [(9, 1), (5, 5), (0, 6), (1, 0), (40, 22)])
def test_the_sign_test_is_exact_and_leaves_ties_out(wins: int, losses: int) -> None:
    signs = [1] * wins + [-1] * losses + [0] * 7
    expected = binomtest(wins, wins + losses).pvalue
    assert sign_test((f"{i}", float(sign)) for i, sign in enumerate(signs)) == pytest.approx(expected)
    assert sign_test([("a", 0.0)]) is None


def test_kappa_is_agreement_beyond_chance() -> None:
    table = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    found = agreement((f"{i}", *pair) for i, pair in enumerate(table))
    assert found is not None
    assert found.kappa is not None
    assert (found.prompts, found.share.mean, found.kappa.mean) == pytest.approx((50, 0.7, 0.4))  # (0.7 - 0.5) / (1 - 0.5)
    assert 0.1 < found.kappa.low < 0.4 < found.kappa.high < 0.7
    assert found == agreement((f"{i}", *pair) for i, pair in enumerate(table))


def test_kappa_is_unknown_where_nobody_varies() -> None:
    found = agreement([("a", 1, 1), ("b", 1, 1)])
    assert found is not None
    assert (found.share.mean, found.kappa) == (1.0, None)
    assert agreement([]) is None
