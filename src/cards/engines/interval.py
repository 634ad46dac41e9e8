"""Bounds on the entropy from the top-k probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence


def entropy_interval(probabilities: Sequence[float], k: int, vocabulary: int) -> tuple[float, float]:
    """Return the lowest and highest entropy (nats) of a distribution over `vocabulary` tokens with these probabilities.

    The given probabilities include the k highest. The remaining mass m lies on the other r tokens. None of them is above c,
    the k-th highest probability. With h(p) = -p log p and H the sum of h over the given probabilities, the entropy is

        highest if m is spread evenly:  H + r h(m / r)
        lowest if m is concentrated:    H + n h(c) + h(m - n c),  n = floor(m / c)

    Both bounds are attained. If fewer than k probabilities are given, c is unknown and m is used instead. This happens with
    servers that identify tokens by text, because tokens with equal text are listed once.
    """
    shown = sorted(probabilities, reverse=True)
    known = math.fsum(map(_h, shown))
    left = max(0.0, 1.0 - math.fsum(shown))
    rest = vocabulary - len(shown)
    if left == 0.0 or rest <= 0:
        return known, known
    cap = min(left, shown[k - 1]) if len(shown) >= k else left
    heaps = min(math.floor(left / cap), rest) if cap > 0 else 0
    low = known + heaps * _h(cap) + _h(max(0.0, left - heaps * cap))
    return low, max(low, known + rest * _h(left / rest))


def _h(p: float) -> float:
    return -p * math.log(p) if p > 0 else 0.0
