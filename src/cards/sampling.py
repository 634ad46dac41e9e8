"""Sampling: temperature, top-k, top-p, and counter-based random numbers.

Random numbers are a function of (seed, segment, candidate, token number). So a text does not depend on the number of
candidates drawn together or on other requests in the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cards.errors import ModelError, check

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Separate random streams:
TOKENS, VERDICT = 0, 1  # to draw tokens; to accept or reject candidates
GUIDE_VERDICT = 2  # to accept or reject candidates by their guide score
COUNT = 3  # to choose the number of candidates
RESAMPLING = 11  # to choose among particles
DRAFT_TEST, RESIDUAL, CHOICE = 21, 22, 23  # to accept drafted tokens; to replace rejected ones; to choose among steps
SEEDS, INNER_SEEDS = 31, 32  # to derive the seeds of several requests; of the responses that an inner method draws

BLOCK = 512  # tokens of a large vocabulary that are searched or summed together


@dataclass(frozen=True, slots=True)
class Sampling:
    """The proposal distribution: softmax(logits / temperature) on the top_k most likely tokens without those of less than
    min_p times the highest probability, then the nucleus of mass top_p, renormalised.

    temperature 0 is greedy; top_k None is the whole vocabulary. Raises SettingError.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        check(0 <= self.temperature < float("inf"), f"temperature must be 0 (greedy) or positive, got {self.temperature}.")
        check(self.top_k is None or self.top_k >= 1, f"top_k must be at least 1 or None (off), got {self.top_k}.")
        check(0 < self.top_p <= 1, f"top_p must be above 0 and at most 1, got {self.top_p}.")
        check(0 <= self.min_p <= 1, f"min_p must be between 0 and 1, got {self.min_p}.")

    @property
    def lowest(self) -> float:
        """The lowest logit minus the highest one, both divided by the temperature, that min_p keeps."""
        return math.log(self.min_p) if self.min_p else -math.inf


def uniforms(seed: int, segment: int, candidate: int, count: int, stream: int = TOKENS) -> NDArray[np.float64]:
    """Return the first `count` numbers in [0, 1) of the Philox counter stream (seed, stream, segment, candidate)."""
    import numpy as np

    key = np.array([seed % 2**64, stream], np.uint64)  # numpy converts a list with a large seed to floats
    bits = np.random.Philox(key=key, counter=[0, candidate, segment, 0])
    return np.random.Generator(bits).random(count)


def seed_at(seed: int, index: int) -> int:
    """Return the seed of request number `index` of several that are made with one seed; number 0 has the seed itself.

    The others are below 2**53, which JSON represents exactly. They share no random numbers with those of other seeds.
    """
    return seed if index == 0 else int(uniforms(seed, 0, index, 1, SEEDS)[0] * 2**53)


def inner_seed(seed: int, index: int) -> int:
    """Return the seed of response number `index` that an inner method draws, independent of the numbers of the request."""
    return int(uniforms(seed, 0, index, 1, INNER_SEEDS)[0] * 2**53)


def invalid_logits(position: int) -> ModelError:
    """Return the error for logits of token number `position` (from 0) of the response that define no distribution."""
    return ModelError(
        f"The logits of token {position + 1} of the response have no finite maximum: the model computed NaN or infinity. Load "
        "it with another dtype (bfloat16 or float32), and check its weights."
    )


def valid_logits(logits: NDArray[np.floating[Any]], position: int) -> NDArray[np.float64]:
    """Return the logits [vocabulary] of token number `position` in float64. Raises ModelError if they contain NaN or +inf."""
    import numpy as np

    if not np.isfinite(logits.max()):
        raise invalid_logits(position)
    return np.asarray(logits, np.float64)


def block_maxima(logits: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Return the highest logit of each block of `BLOCK` tokens; the last block may be shorter."""
    import numpy as np

    return np.maximum.reduceat(logits, np.arange(0, len(logits), BLOCK))


def most_likely(
    logits: NDArray[np.floating[Any]], count: int, maxima: NDArray[np.floating[Any]] | None = None
) -> NDArray[np.intp]:
    """Return the tokens with the `count` highest logits [vocabulary], in ascending order. Of equal ones the first are taken.

    At least `count` logits reach the count-th highest maximum of a block, so only blocks with such a maximum are searched.
    maxima: `block_maxima(logits)`, if they are known.
    """
    import numpy as np

    if count >= len(logits):
        return np.arange(len(logits))
    maxima = block_maxima(logits) if maxima is None else maxima
    blocks, lowest = np.arange(len(maxima)), -np.inf
    if count <= len(maxima):
        lowest = np.partition(maxima, -count)[-count]
        blocks = np.flatnonzero(maxima >= lowest)
    ids = (blocks[:, None] * BLOCK + np.arange(BLOCK)).ravel()
    ids = ids[: np.searchsorted(ids, len(logits))]
    ids = ids[logits[ids] >= lowest]
    values = logits[ids]
    lowest = np.partition(values, -count)[-count]
    above = ids[values > lowest]
    return np.sort(np.concatenate([above, ids[values == lowest][: count - len(above)]]))


def distribution(logits: NDArray[np.floating[Any]], sampling: Sampling, position: int = 0) -> NDArray[np.float64]:
    """Return the proposal's probabilities [vocabulary] for the logits [vocabulary] of token number `position`.

    Raises ModelError if the logits contain NaN or +inf, or only -inf.
    """
    import numpy as np

    logits = valid_logits(logits, position)
    p = np.zeros_like(logits)
    if sampling.temperature == 0:
        p[logits.argmax()] = 1.0
        return p
    kept = slice(None) if sampling.top_k is None else most_likely(logits, sampling.top_k)
    relative = (logits[kept] - logits.max()) / sampling.temperature
    p[kept] = np.where(relative < sampling.lowest, 0.0, np.exp(relative))
    p /= p.sum()
    if sampling.top_p < 1:
        order = np.argsort(-p, kind="stable")
        falling = p[order]
        p[order] = np.where(falling.cumsum() - falling >= sampling.top_p, 0.0, falling)
        p /= p.sum()
    return p


def pick(p: NDArray[np.float64], u: float) -> int:
    """Draw an index by inverse CDF from weights p [n], not necessarily normalised, with u in [0, 1)."""
    cdf = p.cumsum()
    return min(int((cdf <= u * cdf[-1]).sum()), int(p.nonzero()[0][-1]))
