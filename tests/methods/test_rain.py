"""RAIN against a search written down step by step; what it costs; what it does not depend on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from helpers.letter_world import END, Ids, next_token, reading, results, value

from cards import Accepted, Decoder, Proposed, Rejected
from cards.engines.mock import MockEngine
from cards.errors import SettingError
from cards.methods import RAIN
from cards.rewards import FunctionReward
from cards.sampling import uniforms

Path = tuple[Ids, ...]


def joined(path: Path) -> Ids:
    return tuple(t for piece in path for t in piece)


class Reference:
    """The search in full: every list of scores is kept, every mean computed anew."""

    def __init__(self, method: RAIN, seed: int, max_tokens: int) -> None:
        self.method, self.seed, self.max_tokens = method, seed, max_tokens
        self.scores: dict[Path, list[float]] = {}
        self.shares: dict[Path, dict[Path, float]] = {}  # of each expanded path: its children, and how often each was drawn
        self.drawn: dict[int, int] = {}
        self.judged = 0

    def answer(self) -> Path:
        root: Path = ()
        while not self.ended(root):
            for _ in range(self.method.searches):
                self.search(root)
            children = list(self.shares[root])
            root = max(children, key=lambda c: (len(self.scores[c]), np.mean(self.scores[c]), -children.index(c)))
        return root

    def ended(self, path: Path) -> bool:
        ids = joined(path)
        return len(ids) == self.max_tokens or ids[-1:] == (END,)

    def search(self, root: Path) -> None:
        path = root
        while path in self.shares:
            path = max(self.shares[path], key=lambda child: self.puct(path, child))
        if self.ended(path):
            self.count(root, path, self.score(path))
            return
        draws = [(*path, self.piece(path)) for _ in range(self.method.children)]
        self.shares[path] = {child: draws.count(child) / len(draws) for child in draws}
        for child in self.shares[path]:
            self.judged += 1
            self.count(root, child, self.score(child))

    def puct(self, path: Path, child: Path) -> float:
        siblings = sum(len(self.scores[c]) for c in self.shares[path])
        p = self.shares[path][child]
        bonus = self.method.exploration * p * math.sqrt(siblings) / (1 + len(self.scores[child]))
        return float(np.mean(self.scores[child])) + bonus

    def count(self, root: Path, path: Path, score: float) -> None:
        for depth in range(len(root), len(path) + 1):
            self.scores.setdefault(path[:depth], []).append(score)

    def score(self, path: Path) -> float:
        r = value(reading(joined(path)))
        return 1 / (1 + math.exp(-r))

    def piece(self, path: Path) -> Ids:
        """The next candidate of this depth, by inverse CDF."""
        depth = len(path)
        number = self.drawn.get(depth, 0)
        self.drawn[depth] = number + 1
        length = self.method.lengths[min(depth, len(self.method.lengths) - 1)]
        length = min(length, self.max_tokens - len(joined(path)))
        found: Ids = ()
        for u in uniforms(self.seed, depth, number, length):
            found += (int(np.searchsorted(np.cumsum(next_token(joined(path) + found)), u, side="right")),)
            if found[-1] == END:
                break
        return found


def rain(**options: Any) -> RAIN:
    return RAIN(**({"temperature": 1.0, "top_k": None, "lengths": (1, 2, 3)} | options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"searches": 9, "children": 3},
        {"searches": 7, "exploration": 0.0},
        {"searches": 12, "exploration": 0.3},
        {"searches": 1, "lengths": (2,)},
        {"searches": 6, "children": 1},
        {"searches": 30, "lengths": (1, 1, 1)},
    ],
    ids=str,
)
def test_it_searches_as_written_down(options: dict[str, Any]) -> None:
    method, revisited = rain(**options), 0
    for seed, found in enumerate(results(method, 7, draws=12)):
        reference = Reference(method, seed, 7)
        path = reference.answer()
        assert [s.token_ids for s in found.segments] == list(path)
        assert [s.reward for s in found.segments] == pytest.approx(
            [value(reading(joined(path[: i + 1]))) for i in range(len(path))]
        )
        assert found.usage.rm_calls == found.usage.candidates == reference.judged
        assert found.usage.rounds == len(reference.shares)
        assert found.usage.lm_decoded_tokens >= sum(len(c[-1]) for children in reference.shares.values() for c in children)
        revisited += sum(reference.scores.get(p, []) != [reference.score(p)] for p in reference.scores if reference.ended(p))
    assert revisited or options.get("searches") == 1


def test_searching_finds_better_answers_than_chance() -> None:
    chance = [r.reward for r in results(rain(searches=1, children=1), 7, draws=60)]
    found = [r.reward for r in results(rain(searches=16), 7, draws=60)]
    assert np.mean(np.array(found, float)) > np.mean(np.array(chance, float)) + 0.5


def test_each_piece_gets_one_verdict_and_the_first_are_released_early() -> None:
    decoder = Decoder(MockEngine(next_token, "abcd", end="d"), FunctionReward(lambda p, r: value(r)), rain())
    early = 0
    for seed in range(10):
        events = list(decoder.stream("?", max_tokens=8, seed=seed, trace=True))
        result = events.pop().result  # type: ignore[union-attr]
        proposed = [(e.position, e.candidate) for e in events if isinstance(e, Proposed)]
        verdicts = [(e.position, e.candidate) for e in events if isinstance(e, Accepted | Rejected)]
        assert len(set(proposed)) == len(proposed)
        assert sorted(proposed) == sorted(verdicts)
        assert result.usage.candidates == sum(s.candidates for s in result.segments)
        assert result.usage.rejected == sum(len(s.rejected) for s in result.segments)
        kinds = [type(e) for e in events]
        early += Proposed in kinds[kinds.index(Accepted) :]
    assert early > 5


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"searches": 0}, "searches"),
        ({"children": 0}, "children"),
        ({"exploration": -1.0}, "exploration"),
        ({"exploration": math.inf}, "exploration"),
        ({"lengths": ()}, "lengths"),
        ({"lengths": (1, 0)}, "lengths"),
        ({"temperature": -1.0}, "temperature"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingError, match=named):
        RAIN(**options)
