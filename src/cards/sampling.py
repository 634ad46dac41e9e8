"""Sampling: temperature, top-k, top-p, and counter-based random numbers.

Random numbers are a function of (seed, segment, candidate, token number). So a text does not depend on the number of
candidates drawn together or on other requests in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cards.errors import check

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Separate random streams:
TOKENS, VERDICT = 0, 1  # to draw tokens; to accept or reject candidates
GUIDE_VERDICT = 2  # to accept or reject candidates by their guide score
RESAMPLING = 11  # to choose among particles
DRAFT_TEST, RESIDUAL, CHOICE = 21, 22, 23  # to accept drafted tokens; to replace rejected ones; to choose among steps


@dataclass(frozen=True, slots=True)
class Sampling:
    """The proposal distribution: softmax(logits / temperature) on the top_k most likely tokens, then the nucleus of
    mass top_p, renormalised. temperature 0 is greedy; top_k None is the whole vocabulary. Raises SettingError."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check(0 <= self.temperature < float("inf"), f"temperature must be 0 (greedy) or positive, got {self.temperature}.")
        check(self.top_k is None or self.top_k >= 1, f"top_k must be at least 1 or None (off), got {self.top_k}.")
        check(0 < self.top_p <= 1, f"top_p must be above 0 and at most 1, got {self.top_p}.")


def uniforms(seed: int, segment: int, candidate: int, count: int, stream: int = TOKENS) -> NDArray[np.float64]:
    """Return the first `count` numbers in [0, 1) of the Philox counter stream (seed, stream, segment, candidate)."""
    import numpy as np

    key = np.array([seed % 2**64, stream], np.uint64)  # numpy converts a list with a large seed to floats
    bits = np.random.Philox(key=key, counter=[0, candidate, segment, 0])
    return np.random.Generator(bits).random(count)


def distribution(logits: NDArray[np.floating[Any]], sampling: Sampling) -> NDArray[np.float64]:
    """Return the proposal's probabilities over the whole vocabulary, [..., vocabulary] -> the same shape."""
    import numpy as np

    logits = np.asarray(logits, np.float64)
    if sampling.temperature == 0:
        return np.asarray(np.arange(logits.shape[-1]) == logits.argmax(-1)[..., None], np.float64)
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        kept = np.argpartition(-logits, sampling.top_k - 1, axis=-1)[..., : sampling.top_k]
        few = distribution(np.take_along_axis(logits, kept, -1), replace(sampling, top_k=None))
        p = np.zeros_like(logits)
        np.put_along_axis(p, kept, few, -1)
        return p
    p = np.exp((logits - logits.max(-1, keepdims=True)) / sampling.temperature)
    p /= p.sum(-1, keepdims=True)
    if sampling.top_p < 1:
        order = np.argsort(-p, axis=-1, kind="stable")
        falling = np.take_along_axis(p, order, -1)
        np.put_along_axis(p, order, np.where(falling.cumsum(-1) - falling >= sampling.top_p, 0.0, falling), -1)
        p /= p.sum(-1, keepdims=True)
    return np.asarray(p, np.float64)


def pick(p: NDArray[np.float64], u: float) -> int:
    """Draw an index by inverse CDF from weights p [n], not necessarily normalised, with u in [0, 1)."""
    cdf = p.cumsum()
    return min(int((cdf <= u * cdf[-1]).sum()), int(p.nonzero()[0][-1]))
