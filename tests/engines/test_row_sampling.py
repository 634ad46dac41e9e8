"""The fast sampling of rows draws what `cards.sampling` draws."""

from __future__ import annotations

import numpy as np
import pytest

from cards.backends.llamacpp.sampling import RowPool, draw, logprob, uncertainty
from cards.boundaries import Entropy, Measure
from cards.sampling import Sampling, distribution, most_likely, pick

SAMPLINGS = (
    Sampling(),
    Sampling(0.7),
    Sampling(0.0),
    Sampling(top_k=1),
    Sampling(1.3, top_k=50),
    Sampling(0.8, 40, 0.9),
    Sampling(top_p=0.5),
    Sampling(top_p=0.999),
    Sampling(min_p=0.1),
    Sampling(1.3, 20, 0.9, min_p=0.05),
    Sampling(0.7, top_p=0.8, min_p=1.0),
)


def rows(vocabulary: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Flat and peaked rows, rows with ties, and rows with impossible tokens."""
    logits = np.random.default_rng(vocabulary).standard_normal((6, vocabulary)).astype(np.float32)
    logits *= np.array([[0.3], [1], [3], [10], [1], [3]], np.float32)
    logits[4] = np.round(logits[4])
    logits[5, ::3] = -np.inf
    return logits


@pytest.mark.parametrize("vocabulary", [2, 300, 512, 5000, 70000])
def test_draws_equal_those_of_the_reference(vocabulary: int) -> None:
    numbers = np.random.default_rng(1).random(5).tolist()
    for row in rows(vocabulary):
        for sampling in SAMPLINGS:
            p = distribution(row, sampling)
            assert [draw(row, sampling, u) for u in numbers] == [pick(p, u) for u in numbers]


@pytest.mark.parametrize("measure", ["entropy", "mcp", "evidential"])
@pytest.mark.parametrize("vocabulary", [2, 5000, 70000])
@pytest.mark.parametrize("shift", [0, 20, 200, -200])  # exp of the last two overflows and underflows
def test_uncertainties_equal_those_of_the_boundary(vocabulary: int, measure: Measure, shift: float) -> None:
    boundary = Entropy(measure=measure)
    for row in rows(vocabulary) + np.float32(shift):
        assert uncertainty(row, boundary) == pytest.approx(boundary.uncertainty(row), abs=1e-5)


def test_logprobs_equal_those_of_the_distribution() -> None:
    for row in rows(5000)[:5]:
        for temperature in (1.0, 0.6):
            p = distribution(row, Sampling(temperature))
            assert logprob(row, 17, temperature) == pytest.approx(np.log(p[17]), abs=1e-4)


def test_logits_without_a_finite_maximum_are_refused() -> None:
    row = np.zeros(600, np.float32)
    for wrong in (np.nan, np.inf):
        row[7] = wrong
        assert draw(row, Sampling(), 0.5) == -1
    assert draw(np.full(600, -np.inf, np.float32), Sampling(), 0.5) == -1


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    logits = rows(262144)
    pool = RowPool(2)
    u = [0.1 * i for i in range(6)]
    together = pool.map(lambda row, number: draw(row, Sampling(), number), logits, u)
    assert together == [draw(row.copy(), Sampling(), number) for row, number in zip(logits, u, strict=True)]
    pool.close()


def test_the_most_likely_tokens_are_the_first_of_a_stable_sort() -> None:
    for vocabulary in (2, 300, 513, 5000):
        for row in rows(vocabulary):
            for count in (1, 2, 7, 40, 600):
                assert most_likely(row, count).tolist() == sorted(np.argsort(-row, kind="stable")[:count].tolist())
