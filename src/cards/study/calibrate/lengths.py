"""Segment lengths for each threshold tau_u, computed from the entropies of plain responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cards.errors import MismatchError
from cards.study.journal import Row

SEGMENTS, MIN_TOKENS = 8, 8.0  # the suggested number of segments, and tokens of a segment


@dataclass(frozen=True, slots=True)
class SegmentLengths:
    """Segments of plain responses at a threshold: mean tokens per segment with quartiles, and mean segments per response."""

    threshold: float
    tokens: float
    segments: float
    quartiles: tuple[float, float, float]


def lengths_by_threshold(rows: Sequence[Row], thresholds: Sequence[float], minimum: int, maximum: int) -> list[SegmentLengths]:
    """Return the segment lengths at each threshold."""
    result = []
    for threshold in thresholds:
        lengths = [
            length
            for row in rows
            for tokens, entropies in zip(row["tokens"], row["entropies"], strict=True)
            for length in segment_lengths(tokens, entropies, threshold, minimum, maximum)
        ]
        responses = sum(len(row["tokens"]) for row in rows)
        low, middle, high = (float(q) for q in np.quantile(lengths, [0.25, 0.5, 0.75]))
        mean = sum(lengths) / len(lengths)
        result.append(SegmentLengths(threshold, mean, len(lengths) / responses, (low, middle, high)))
    return result


def segment_lengths(tokens: int, entropies: Sequence[float], threshold: float, minimum: int, maximum: int) -> list[int]:
    """Return the tokens of each segment of a response. entropies[i] is the entropy after token i."""
    lengths, length = [], 0
    for number in range(tokens):
        length += 1
        uncertain = number < len(entropies) and entropies[number] >= threshold
        if number == tokens - 1 or length == maximum or (length >= minimum and uncertain):
            lengths.append(length)
            length = 0
    return lengths


def threshold_grid(rows: Sequence[Row], count: int = 9) -> list[float]:
    """Return `count` values of tau_u to compare: quantiles of the entropies from 10% to 100%, rounded to two digits.

    Raises MismatchError if there are no entropies.
    """
    values = [entropy for row in rows for response in row["entropies"] for entropy in response]
    if not values:
        raise MismatchError(
            "tau_u cannot be chosen: the responses have one token each, or the engine has no logits. Give --entropy-threshold."
        )
    levels = np.linspace(0.1, 1.0, count)
    return sorted({round(float(quantile), 2) for quantile in np.quantile(values, levels)})


def suggest(rows: Sequence[Row], options: Sequence[SegmentLengths], tokens: float | None = None) -> SegmentLengths:
    """Return the option whose mean segment is nearest to `tokens` (None: an eighth of the mean response, at least 8 tokens)."""
    lengths = [count for row in rows for count in row["tokens"]]
    wanted = max(MIN_TOKENS, sum(lengths) / len(lengths) / SEGMENTS) if tokens is None else tokens
    return min(options, key=lambda option: abs(option.tokens - wanted))
