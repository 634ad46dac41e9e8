"""Measures of text and statistics against values computed by hand."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from cards.methods.responses.best_of_n import BestOfN
from cards.study.bench.metrics import coherence, distinct, ngrams, perplexity, repetition, words
from cards.study.statistics import FEW, ScoredResponse, T, compare, estimate, interval_name


def test_words_are_lower_cased_and_marks_stand_alone() -> None:
    assert words("Don't stop, DON'T!") == ["don't", "stop", ",", "don't", "!"]
    assert ngrams("a b c", 2) == [("a", "b"), ("b", "c")]
    assert ngrams("a", 2) == []


def test_distinct_counts_over_all_texts_together() -> None:
    assert distinct(["a b a", "b c"], 1) == 3 / 5  # a, b, c of five
    assert distinct(["a b a b", "a b"], 2) == 2 / 4  # ab, ba of ab, ba, ab, ab
    assert distinct(["a", "b"], 2) is None


def test_repetition_is_averaged_over_texts_that_are_long_enough() -> None:
    assert repetition(["a b a b", "a b c", "a"], 2) == pytest.approx((1 - 2 / 3 + 0) / 2)
    assert repetition(["x y z w x y z w"], 4) == pytest.approx(1 - 4 / 5)
    assert repetition(["a b"], 3) is None


def test_perplexity_weighs_tokens_not_answers() -> None:
    assert perplexity([(math.log(1 / 8), 3), (math.log(1 / 2), 1)]) == pytest.approx(2.0)  # (1/16) ** (-1/4)
    assert perplexity([]) is None


def test_coherence_is_the_gain_of_the_own_prompt_for_each_token() -> None:
    assert coherence([(-2.0, -6.0, 4), (-3.0, -3.0, 1)]) == pytest.approx((1.0 + 0.0) / 2)
    assert coherence([]) is None


def test_an_estimate_is_the_mean_over_prompts_whatever_their_number_of_seeds() -> None:
    found = estimate([("a", 0.0), ("a", 2.0), ("a", 4.0), ("b", 10.0)])
    assert found is not None
    assert found.mean == (2.0 + 10.0) / 2
    wider = 12.706 * math.sqrt(2) / 1.96  # with two prompts, 1 of 4 resamples has the one twice
    assert (found.low, found.high) == pytest.approx((6.0 - 4 * wider, 6.0 + 4 * wider), rel=1e-4)
    assert estimate([]) is None


def test_intervals_are_repeatable_and_cover_the_mean_about_as_often_as_they_say() -> None:
    import numpy as np

    rng = np.random.default_rng(5)
    samples = [[(str(i), float(x)) for i, x in enumerate(rng.normal(1.0, 2.0, 40))] for _ in range(150)]
    found = [estimate(sample) for sample in samples]
    assert found == [estimate(sample) for sample in samples]
    assert estimate(samples[0][::-1]) == found[0]
    covered = sum(e is not None and e.low <= 1.0 <= e.high for e in found) / len(found)
    assert 0.88 <= covered <= 0.99  # 95% in the limit; fixed seed


@pytest.mark.parametrize("prompts", [4, 8, 16, 19])
def test_intervals_of_few_prompts_cover_the_mean_as_often_as_they_say(prompts: int) -> None:
    import numpy as np

    rng = np.random.default_rng(prompts)
    samples = rng.normal(1.0, 2.0, (400, prompts))
    found = [estimate((str(i), float(x)) for i, x in enumerate(sample)) for sample in samples]
    covered = np.mean([e is not None and e.low <= 1.0 <= e.high for e in found])
    assert 0.92 <= covered <= 0.98
    assert "Student" in interval_name(prompts)
    assert "Student" not in interval_name(20)


def test_the_quantiles_of_students_t_are_scipys() -> None:
    assert pytest.approx(stats.t.ppf(0.975, range(1, FEW - 1)), abs=5e-4) == T


def answers(*rows: tuple[str, int, str, float]) -> list[ScoredResponse]:
    return [ScoredResponse(*row) for row in rows]


def test_pairs_are_of_one_prompt_and_seed_and_ties_are_the_same_text_or_close() -> None:
    base = answers(("a", 0, "x", 1.0), ("a", 1, "y", 1.0), ("b", 0, "z", 2.0), ("c", 0, "only here", 9.0))
    other = answers(("a", 0, "better", 3.0), ("a", 1, "y", 1.5), ("b", 0, "close", 2.2), ("d", 0, "alone", 5.0))
    found = compare(other, base)
    assert found is not None
    assert found.pairs == 3
    assert (found.win.mean, found.tie.mean, found.loss.mean) == ((0.5 + 1) / 2, (0.5 + 0) / 2, 0.0)
    assert found.gain.mean == pytest.approx(((2.0 + 0.5) / 2 + 0.2) / 2)
    close = compare(other, base, tolerance=0.25)
    assert close is not None
    assert (close.win.mean, close.tie.mean) == (0.25, 0.75)
    worse = compare(base, other)
    assert worse is not None
    assert (worse.win.mean, worse.loss.mean, worse.gain.mean) == (found.loss.mean, found.win.mean, -found.gain.mean)
    assert compare(other, []) is None


@pytest.mark.parametrize("n", [1, 2, 8])
def test_the_bound_of_best_of_n_holds_and_is_tight_where_no_answer_is_likely(n: int) -> None:
    def divergence(p: list[float]) -> float:
        """KL(best of n || p), the answers in order of their rewards: the best is number i with F(i)^n - F(i - 1)^n."""
        below, total = 0.0, 0.0
        for chance in p:
            best = (below + chance) ** n - below**n
            total += best * math.log(best / chance)
            below += chance
        return total

    bound = BestOfN(n=n).kl_bound
    assert bound is not None
    assert divergence([0.5, 0.2, 0.3]) <= bound + 1e-12
    assert divergence([1 / 20000] * 20000) == pytest.approx(bound, abs=1e-3)
