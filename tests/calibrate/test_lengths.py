"""Segment lengths read off entropies are those that the engine cuts."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from helpers.mock_calibration import LETTERS, likes_b

from cards import CARDS, Decoder
from cards.boundaries import Entropy
from cards.engines.mock import MockEngine
from cards.events import Response
from cards.rewards.function import FunctionReward
from cards.study.calibrate.lengths import SegmentLengths, lengths_by_threshold, segment_lengths, suggest, threshold_grid


def chances(ids: tuple[int, ...]) -> list[float]:
    """Sharp and flat in turns that the last two letters decide."""
    return [float(p) for p in np.random.default_rng([7, *ids[-2:]]).dirichlet([0.3, 1.0, 1.0, 0.5, 0.5])]


def test_lengths_are_those_that_the_engine_cuts() -> None:
    engine, boundary = MockEngine(chances, LETTERS, end="</s>"), Entropy(1, 5, 1.0)
    method = CARDS(target=-99.0, boundary=boundary, temperature=1.0)
    decoder = Decoder(engine, FunctionReward(likes_b), method)
    seen = set()
    for result in decoder.batch(["ab"] * 40, max_tokens=16, progress=False):
        prompt, before = engine.encode("ab"), Response(token_ids=result.token_ids[:-1])
        logits: Any = asyncio.run(engine.logits(prompt, before, len(before.token_ids))) if before.token_ids else []
        entropies = [boundary.uncertainty(line) for line in logits]
        assert segment_lengths(len(result.token_ids), entropies, 1.0, 1, 5) == [len(s.token_ids) for s in result.segments]
        seen |= {len(s.token_ids) for s in result.segments}
    assert len(seen) > 3


def test_a_higher_threshold_gives_longer_segments_and_the_nearest_is_suggested() -> None:
    rows = [{"tokens": [9, 6], "entropies": [[0.1, 2.0, 0.3, 2.5, 0.2, 1.0, 3.0, 0.1], [2.2, 0.4, 1.5, 0.3, 0.9]]}]
    found = lengths_by_threshold(rows, threshold_grid(rows), 1, 64)
    tokens = [one.tokens for one in found]
    assert tokens == sorted(tokens)
    assert (found[-1].segments, suggest(rows, found, 1.0)) == (1.5, found[0])
    assert suggest(rows, found).tokens == max(tokens)  # at least eight tokens


def test_quartiles_are_of_all_segments() -> None:
    rows = [{"tokens": [4], "entropies": [[2.0, 0.0, 2.0]]}]
    assert lengths_by_threshold(rows, [1.0], 1, 64) == [SegmentLengths(1.0, 4 / 3, 3.0, (1.0, 1.0, 1.5))]
