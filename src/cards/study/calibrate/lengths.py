"""Segment lengths that each tau_u gives, read off the entropies of plain answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cards.errors import MismatchError

Row = dict[str, Any]
SEGMENTS, SHORTEST = 8, 8.0


@dataclass(frozen=True, slots=True)
class Cut:
    """What a threshold makes of plain answers: mean tokens of a segment, with quartiles, and mean segments of an answer."""

    threshold: float
    tokens: float
    segments: float
    quartiles: tuple[float, float, float]


def cuts(rows: Sequence[Row], thresholds: Sequence[float], minimum: int, maximum: int) -> list[Cut]:
    """One for each threshold."""
    import numpy as np

    found = []
    for threshold in thresholds:
        lengths = [
            length
            for row in rows
            for tokens, entropies in zip(row["tokens"], row["entropies"], strict=True)
            for length in cut(tokens, entropies, threshold, minimum, maximum)
        ]
        answers = sum(len(row["tokens"]) for row in rows)
        low, middle, high = (float(q) for q in np.quantile(lengths, [0.25, 0.5, 0.75]))
        found.append(Cut(threshold, sum(lengths) / len(lengths), len(lengths) / answers, (low, middle, high)))
    return found


def cut(tokens: int, entropies: Sequence[float], threshold: float, minimum: int, maximum: int) -> list[int]:
    """Lengths of the segments of an answer; entropies[i] is the uncertainty after token i."""
    lengths, length = [], 0
    for number in range(tokens):
        length += 1
        unsure = number < len(entropies) and entropies[number] >= threshold
        if number == tokens - 1 or length == maximum or (length >= minimum and unsure):
            lengths.append(length)
            length = 0
    return lengths


def thresholds_of(rows: Sequence[Row], count: int = 9) -> list[float]:
    """Candidates for tau_u: quantiles of the entropies, from the tenth to the last, rounded to two digits."""
    import numpy as np

    entropies = [entropy for row in rows for answer in row["entropies"] for entropy in answer]
    if not entropies:
        raise MismatchError(
            "tau_u cannot be chosen: the answers have one token each, or the engine gives no logits. Give --entropy-threshold."
        )
    levels = np.linspace(0.1, 1.0, count)
    return sorted({round(float(quantile), 2) for quantile in np.quantile(entropies, levels)})


def suggested(rows: Sequence[Row], found: Sequence[Cut], tokens: float | None = None) -> Cut:
    """The cut whose mean segment is nearest to `tokens` (None: an eighth of the mean answer, but at least eight tokens)."""
    lengths = [count for row in rows for count in row["tokens"]]
    wanted = max(SHORTEST, sum(lengths) / len(lengths) / SEGMENTS) if tokens is None else tokens
    return min(found, key=lambda one: abs(one.tokens - wanted))
