"""Metrics of a set of responses: diversity, repetition, perplexity and coherence under the base LM."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import regex

from cards.words import SPACED, UNSPACED

WORD = regex.compile(rf"{UNSPACED}\p{{M}}*|{SPACED}+(?:'{SPACED}+)*|[^\w\s]", regex.V1)


def words(text: str) -> list[str]:
    """Return the lower-cased words and punctuation marks of a text."""
    return WORD.findall(text.lower())


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    tokens = words(text)
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Return distinct-n: unique n-grams over all n-grams of all texts (arXiv 1510.03055). It falls with the number of texts."""
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else None


def repetition(texts: Sequence[str], n: int) -> float | None:
    """Return rep-n: the share of repeated n-grams in a text, averaged over the texts with n-grams (arXiv 2202.06417)."""
    shares = [1 - len(set(grams)) / len(grams) for text in texts if (grams := ngrams(text, n))]
    return sum(shares) / len(shares) if shares else None


def perplexity(responses: Iterable[tuple[float, int]]) -> float | None:
    """Return exp(-sum of log p / number of tokens) over all responses, from (log p, tokens) pairs."""
    pairs = list(responses)
    total = sum(tokens for _, tokens in pairs)
    return math.exp(-sum(logprob for logprob, _ in pairs) / total) if total else None


def coherence(responses: Iterable[tuple[float, float, int]]) -> float | None:
    """Return the mean of (log p(y | its prompt) - log p(y | another prompt)) / tokens, in nats.

    The input is (log p given its prompt, log p given another prompt, tokens) for each response y. The value is about 0 for
    responses that would suit any prompt.
    """
    gains = [(own - other) / tokens for own, other, tokens in responses]
    return sum(gains) / len(gains) if gains else None
