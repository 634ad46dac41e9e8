"""How alike two texts are, in [0, 1]: utilities for methods that look for agreement among answers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

from cards.errors import check

Utility = Callable[[str, str], float]  # (answer, reference)
Similarity = Literal["chrf", "rouge-l", "jaccard", "exact"]


def chrf(answer: str, reference: str, orders: int = 6, beta: float = 2.0) -> float:
    """chrF (Popovic 2015): F-score of the mean precision and recall of character n-grams, n = 1 .. 6, spaces aside."""
    counts = [(_grams(answer, n), _grams(reference, n)) for n in range(1, orders + 1)]
    both = [(a, b, (a & b).total()) for a, b in counts if a and b]
    if not both:
        return float(answer == reference)
    precision = sum(common / a.total() for a, _, common in both) / len(both)
    recall = sum(common / b.total() for _, b, common in both) / len(both)
    return _f_score(precision, recall, beta)


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L (Lin 2004): F1 of the longest common subsequence of words."""
    a, b = _words(answer), _words(reference)
    if not (a and b):
        return float(a == b)
    common = _longest_common(a, b)
    return _f_score(common / len(a), common / len(b))


def jaccard(answer: str, reference: str) -> float:
    """Shared words over all words, each counted once."""
    a, b = set(_words(answer)), set(_words(reference))
    return len(a & b) / len(a | b) if a | b else 1.0


def exact(answer: str, reference: str) -> float:
    """1 for equal texts, white space around them aside."""
    return float(answer.strip() == reference.strip())


UTILITIES: dict[str, Utility] = {"chrf": chrf, "rouge-l": rouge_l, "jaccard": jaccard, "exact": exact}


def check_utility(utility: str | Utility) -> None:
    check(
        callable(utility) or utility in UTILITIES,
        f"utility must be one of {', '.join(UTILITIES)}, or a function of (answer, reference), not {utility!r}.",
    )


def agreement(texts: Sequence[str], utility: str | Utility) -> list[float]:
    """Mean utility of each text with each of the others as reference; 0 for a text that is alone."""
    function = UTILITIES[utility] if isinstance(utility, str) else utility
    means = []
    for i, text in enumerate(texts):
        values = [float(function(text, other)) for j, other in enumerate(texts) if j != i]
        check(all(map(math.isfinite, values)), f"utility gave {values} for {text!r}; it must return finite numbers.")
        means.append(math.fsum(values) / max(1, len(values)))  # fsum: equal texts get equal means, to the last bit
    return means


def _f_score(precision: float, recall: float, beta: float = 1.0) -> float:
    weighted = beta**2 * precision + recall
    return (1 + beta**2) * precision * recall / weighted if weighted else 0.0


@lru_cache(1024)
def _grams(text: str, n: int) -> Counter[str]:
    text = "".join(text.split())
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))


@lru_cache(1024)
def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.lower()))


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, with the rows of the usual table as the bits of one integer."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & full
    return len(a) - row.bit_count()
