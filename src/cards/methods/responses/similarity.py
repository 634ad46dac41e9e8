"""Similarity of two texts in [0, 1]: the utilities of methods that compare responses."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

from cards.errors import check
from cards.words import words

Utility = Callable[[str, str], float]  # (response, reference)
Similarity = Literal["chrf", "rouge-l", "jaccard", "exact"]


def chrf(response: str, reference: str, orders: int = 6, beta: float = 2.0) -> float:
    """Return chrF (Popovic 2015): the F-score of mean precision and recall of character n-grams, n = 1 .. 6, without spaces."""
    counts = [(_grams(response, n), _grams(reference, n)) for n in range(1, orders + 1)]
    both = [(a, b, (a & b).total()) for a, b in counts if a and b]
    if not both:
        return float(response == reference)
    precision = sum(common / a.total() for a, _, common in both) / len(both)
    recall = sum(common / b.total() for _, b, common in both) / len(both)
    return _f_score(precision, recall, beta)


def rouge_l(response: str, reference: str) -> float:
    """Return ROUGE-L (Lin 2004): F1 of the longest common subsequence of words."""
    a, b = _words(response), _words(reference)
    if not (a and b):
        return float(a == b)
    common = _longest_common(a, b)
    return _f_score(common / len(a), common / len(b))


def jaccard(response: str, reference: str) -> float:
    """Return the number of shared words divided by the number of all words, each counted once."""
    a, b = set(_words(response)), set(_words(reference))
    return len(a & b) / len(a | b) if a | b else 1.0


def exact(response: str, reference: str) -> float:
    """Return 1 for texts that are equal up to surrounding white space, else 0."""
    return float(response.strip() == reference.strip())


UTILITIES: dict[str, Utility] = {"chrf": chrf, "rouge-l": rouge_l, "jaccard": jaccard, "exact": exact}


def check_utility(utility: str | Utility) -> None:
    """Raise SettingError if the utility is neither a known name nor a function."""
    check(
        callable(utility) or utility in UTILITIES,
        f"utility must be one of {', '.join(UTILITIES)}, or a function of (response, reference), got {utility!r}.",
    )


async def agreement(texts: Sequence[str], utility: str | Utility) -> list[float]:
    """Return the mean utility of each text with each of the others as reference, or 0 if there are no others.

    Each text is a separate call in a thread, so that the event loop goes on, and cancellation ends the work after one text.
    """
    function = UTILITIES[utility] if isinstance(utility, str) else utility
    return [await asyncio.to_thread(_mean_utility, function, texts, i) for i in range(len(texts))]


def _mean_utility(function: Utility, texts: Sequence[str], i: int) -> float:
    values = [float(function(texts[i], other)) for j, other in enumerate(texts) if j != i]
    check(all(map(math.isfinite, values)), f"utility must return finite numbers, got {values} for {texts[i]!r}.")
    return math.fsum(values) / max(1, len(values))  # fsum gives equal texts equal means, to the last bit


def _f_score(precision: float, recall: float, beta: float = 1.0) -> float:
    weighted = beta**2 * precision + recall
    return (1 + beta**2) * precision * recall / weighted if weighted else 0.0


@lru_cache(1024)
def _grams(text: str, n: int) -> Counter[str]:
    text = "".join(text.split())
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))


@lru_cache(1024)
def _words(text: str) -> tuple[str, ...]:
    return tuple(words(text.lower()))


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence. A row of the dynamic program is the bits of one integer."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & full
    return len(a) - row.bit_count()
