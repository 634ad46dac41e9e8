"""Measures of a set of answers: variety, repetition, and what the base LM thinks of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]")


def words(text: str) -> list[str]:
    """Lower-cased words and punctuation marks."""
    return WORD.findall(text.lower())


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    found = words(text)
    return [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Different n-grams over all n-grams of all texts together (arXiv 1510.03055). It falls as texts are added."""
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else None


def repetition(texts: Sequence[str], n: int) -> float | None:
    """rep-n: the share of a text's n-grams that it had before, averaged over the texts that have one (arXiv 2202.06417)."""
    shares = [1 - len(set(grams)) / len(grams) for text in texts if (grams := ngrams(text, n))]
    return sum(shares) / len(shares) if shares else None


def perplexity(answers: Iterable[tuple[float, int]]) -> float | None:
    """exp(-sum of log p / number of tokens) of (log p of an answer, its tokens), over all answers together."""
    found = list(answers)
    total = sum(tokens for _, tokens in found)
    return math.exp(-sum(logprob for logprob, _ in found) / total) if total else None


def coherence(answers: Iterable[tuple[float, float, int]]) -> float | None:
    """Mean of (log p(y | its prompt) - log p(y | another prompt)) / tokens, in nats: what an answer owes to its prompt.

    About 0 for answers that would fit any prompt. Of (the one, the other, tokens) for each answer.
    """
    gains = [(own - other) / tokens for own, other, tokens in answers]
    return sum(gains) / len(gains) if gains else None
