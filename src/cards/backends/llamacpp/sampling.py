"""Sampling and uncertainties of whole vocabularies, equal to `cards.sampling` and `Entropy` up to rounding, in a few passes.

A vocabulary of 262,144 tokens has as many logits, so each pass over a row in float64 would cost as much as a layer of a small
model. A row is therefore processed in float32, in blocks of `BLOCK` tokens whose sums are added in float64. Every row is
processed alone, so its result does not depend on other rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cards.boundaries import Boundary, Entropy
from cards.sampling import BLOCK, Sampling, block_maxima, most_likely, pick

T = TypeVar("T")
Row = NDArray[np.float32]  # logits [vocabulary]
SMALLEST, LARGEST = 1e-12, 1e15  # sums of exp(logit) whose entropy in float32 is exact up to rounding
WORTH_THREADS = 2**19  # logits; the rows of a smaller step are processed in one thread


class RowPool:
    """Threads that process the rows of a step: the calling one and `threads` - 1 others."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.executor = ThreadPoolExecutor(threads - 1, "cards-rows") if threads > 1 else None

    def map(self, function: Callable[..., T], rows: Row | Sequence[Row], *others: Sequence[Any]) -> list[T]:
        """Return function(row, ...) for each row of an array or a sequence."""

        def process(items: Sequence[tuple[Any, ...]]) -> list[T]:
            return [function(*item) for item in items]

        items = list(zip(rows, *others, strict=True))
        if self.executor is None or len(rows) < 2 or len(rows) * len(rows[0]) < WORTH_THREADS:
            return process(items)
        size = -(-len(items) // self.threads)
        rest = [self.executor.submit(process, items[at : at + size]) for at in range(size, len(items), size)]
        return process(items[:size]) + [value for part in rest for value in part.result()]

    def close(self) -> None:
        if self.executor is not None:
            self.executor.shutdown(wait=False)


def draw(row: Row, sampling: Sampling, u: float) -> int:
    """Draw a token by inverse CDF with u in [0, 1). Return -1 if the logits contain NaN or +inf, or only -inf."""
    if sampling.temperature == 0:
        token = int(row.argmax())
        return token if np.isfinite(row[token]) else -1
    maxima = block_maxima(row)
    highest = maxima.max()
    if not np.isfinite(highest):
        return -1
    if sampling.min_p:
        row = np.where((row.astype(np.float64) - highest) / sampling.temperature < sampling.lowest, np.float32(-np.inf), row)
        maxima = block_maxima(row)
    if sampling.top_k is not None and sampling.top_k < len(row):
        ids = most_likely(row, sampling.top_k, maxima)
        p = np.exp((row[ids].astype(np.float64) - highest) / sampling.temperature)
        p /= p.sum()
        if sampling.top_p < 1:
            p = _nucleus(p, sampling.top_p)
        return int(ids[pick(p, u)])
    weights = _weights(row, highest, sampling.temperature)
    sums = _block_sums(weights)
    if sampling.top_p < 1:
        ids, p = _top(row, weights, float(sums.sum()), sampling.top_p)
        return int(ids[pick(_nucleus(p, sampling.top_p), u)])
    cdf = sums.cumsum()
    wanted = u * cdf[-1]
    block = min(int((cdf <= wanted).sum()), int(sums.nonzero()[0][-1]))
    inside = weights[block * BLOCK : (block + 1) * BLOCK].astype(np.float64)
    before = cdf[block - 1] if block else 0.0
    return block * BLOCK + min(int((before + inside.cumsum() <= wanted).sum()), int(inside.nonzero()[0][-1]))


def uncertainty(row: Row, boundary: Boundary) -> float:
    """Return the boundary's uncertainty about the next token."""
    if type(boundary).uncertainty is not Entropy.uncertainty:
        return boundary.uncertainty(row)
    assert isinstance(boundary, Entropy)
    if boundary.measure == "evidential":
        kept = np.count_nonzero(row > -np.inf)
        return float(kept / (_block_sums(row.clip(0)).sum() + kept))
    if boundary.measure == "mcp":
        return 1 - 1 / float(_block_sums(_weights(row, row.max(), 1)).sum())
    # p = w / Z and log p = s - log Z with s = logit and w = exp(s), so -sum p log p = log Z - sum w s / Z
    with np.errstate(over="ignore", invalid="ignore"):
        weights = np.exp(row)
        total, moment = float(_block_sums(weights).sum()), float(_block_sums(weights, row).sum())
        if not (SMALLEST < total < LARGEST and math.isfinite(moment)):  # exp overflows or underflows, or 0 * -inf
            shifted = row - row.max()
            weights = np.exp(shifted)
            total, moment = float(_block_sums(weights).sum()), float(_block_sums(weights, shifted.clip(-1e30)).sum())
    return math.log(total) - moment / total


def logprob(row: Row, token: int, temperature: float) -> float:
    """Return the log-probability of a token at a temperature."""
    highest = row.max()
    total = float(_block_sums(_weights(row, highest, temperature)).sum())
    return (float(row[token]) - float(highest)) / temperature - math.log(total)


def _top(row: Row, weights: Row, total: float, mass: float) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the most likely tokens, at least as many as have this mass, and their probabilities."""
    count = 1024
    while True:
        ids = most_likely(row, count)
        p = weights[ids].astype(np.float64) / total
        if len(ids) == len(row) or p.sum() > mass:
            return ids, p
        count *= 8


def _nucleus(p: NDArray[np.float64], mass: float) -> NDArray[np.float64]:
    """Return the probabilities, with 0 for all beyond the nucleus."""
    order = np.argsort(-p, kind="stable")
    falling = p[order]
    kept = np.zeros_like(p)
    kept[order] = np.where(falling.cumsum() - falling >= mass, 0.0, falling)
    return kept


def _weights(row: Row, highest: np.float32, temperature: float) -> Row:
    """Return exp((logit - highest) / temperature) of each token."""
    shifted = row - highest
    if temperature != 1:
        shifted *= np.float32(1 / temperature)
    weights: Row = np.exp(shifted, out=shifted)
    return weights


def _block_sums(values: Row, others: Row | None = None) -> NDArray[np.float64]:
    """Return the sum of each block of values, or of products with others."""
    whole = len(values) // BLOCK * BLOCK
    parts = [part[:whole].reshape(-1, BLOCK) for part in (values, others) if part is not None]
    rest = [part[whole:] for part in (values, others) if part is not None]
    sums = np.einsum("ij->i" if others is None else "ij,ij->i", *parts)
    return np.append(sums, np.prod(rest, 0).sum()).astype(np.float64) if len(rest[0]) else sums.astype(np.float64)
