"""Exact distributions ("laws") of responses on a small vocabulary, and chi-square tests of samples against them.

law = law_of(random_model(), 3, end=3)                                   # every response of up to 3 tokens
draws = [decoder("a", max_tokens=3, seed=seed).token_ids for seed in range(1000)]
check_law(draws, law, wrong=reweighted(law, lambda ids: 1.5 ** len(ids)))
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T", bound=Hashable)
Ids = tuple[int, ...]
Law = dict[Ids, float]
Model = Callable[[Ids], Sequence[float]]

FIT_P = 1e-3  # samples with a smaller p-value do not follow the law
REJECT_P = 1e-6  # samples with a larger p-value do not reject the law
MIN_EXPECTED = 5  # expected count of a cell of the chi-square test; smaller cells are merged


def law_of(
    model: Model,
    max_tokens: int,
    *,
    end: int | None = None,
    after: Ids = (),
    ends: Callable[[Ids], bool] = lambda tokens: False,
) -> Law:
    """Return every continuation of `after` with its probability under `model` (next-token probabilities, as in MockEngine).

    A continuation ends with the token `end`, at `max_tokens`, or where `ends(its tokens)` is true (a boundary).
    Tokens of probability 0 are omitted.
    """
    law: Law = {}

    def grow(tokens: Ids, p: float) -> None:
        if tokens and (tokens[-1] == end or len(tokens) == max_tokens or ends(tokens)):
            law[tokens] = p
            return
        for token, q in enumerate(model(after + tokens)):
            if q > 0:
                grow((*tokens, token), p * float(q))

    grow((), 1.0)
    return law


def normalised(weights: Mapping[T, float]) -> dict[T, float]:
    """Return the weights divided by their sum."""
    total = sum(weights.values())
    return {key: weight / total for key, weight in weights.items()}


def reweighted(law: Mapping[T, float], weight: Callable[[T], float]) -> dict[T, float]:
    """Return the law proportional to `law(x) * weight(x)`."""
    return normalised({key: p * weight(key) for key, p in law.items()})


def total_variation(one: Mapping[T, float], other: Mapping[T, float]) -> float:
    """Return the total variation distance between two laws, or between counts and a law: 0 if equal, 1 if disjoint."""
    p, q = normalised(one), normalised(other)
    return sum(abs(p.get(key, 0.0) - q.get(key, 0.0)) for key in p.keys() | q.keys()) / 2


def p_value(draws: Iterable[T] | Mapping[T, int], law: Mapping[T, float]) -> float:
    """Return the chi-square p-value of draws (or their counts) under a law; 0 if a draw is impossible under it.

    Cells that expect fewer than 5 draws are merged. Raises AssertionError if fewer than 3 cells are left.
    """
    counts = Counter(draws)
    total = counts.total()
    if any(law.get(key, 0.0) <= 0 for key in counts):
        return 0.0
    large = [key for key, p in law.items() if p * total >= MIN_EXPECTED]
    cells = [(counts[key], law[key] * total) for key in large]
    if (rest := total - sum(expected for _, expected in cells)) > 1:
        cells.append((total - sum(observed for observed, _ in cells), rest))
    assert len(cells) >= 3, (
        f"At least 3 cells are needed, got {len(cells)} from {total} draws. Pass more draws, or a law with more outcomes."
    )
    scale = total / sum(expected for _, expected in cells)
    statistic = sum((observed - expected * scale) ** 2 / (expected * scale) for observed, expected in cells)
    return chi_square_tail(statistic, len(cells) - 1)


def chi_square_tail(statistic: float, degrees: int) -> float:
    """Return P(X > statistic) of a chi-square variable X with `degrees` degrees of freedom."""
    if statistic <= 0:
        return 1.0
    half, odd = statistic / 2, degrees % 2
    shifts = (i + odd / 2 for i in range(degrees // 2))
    terms = sum(math.exp(shift * math.log(half) - half - math.lgamma(shift + 1)) for shift in shifts)
    return terms + odd * math.erfc(math.sqrt(half))


def check_law(draws: Iterable[T] | Mapping[T, int], law: Mapping[T, float], *, wrong: Mapping[T, float]) -> None:
    """Assert that the draws follow `law`, and that the same test rejects the law `wrong`.

    `wrong` guards against a test that cannot fail. Choose the law that a plausible bug would produce, such as the
    untilted proposal. Pass more draws if it is not rejected.
    """
    counts = Counter(draws)
    assert math.isclose(sum(law.values()), 1.0, abs_tol=1e-6), f"The law must sum to 1, got {sum(law.values())}."
    impossible = [key for key in counts if law.get(key, 0.0) <= 0]
    assert not impossible, f"Draws must have positive probability under the law, got {impossible[:3]}."
    p = p_value(counts, law)
    assert p > FIT_P, f"The draws do not follow the law: p = {p:.2g}, total variation {total_variation(counts, law):.3f}."
    p = p_value(counts, wrong)
    assert p < REJECT_P, f"The draws do not reject the wrong law (p = {p:.2g}). Pass more draws."
