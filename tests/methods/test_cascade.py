"""The cascade: its law by enumeration, what its reward model is asked, what it falls back to."""

from __future__ import annotations

import asyncio
import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from functools import cache
from typing import Any

import numpy as np
import pytest
from helpers.letter_world import (
    BETA,
    END,
    REWARD,
    TARGET,
    Ids,
    cards,
    engine,
    first_segments,
    passing,
    reading,
    results,
    segments,
    threshold,
    value,
)
from helpers.random_models import Pair, language_model, word_tokenizer

from cards import CARDS, Decoder, FixedLength, Rejected, Result, Scored
from cards.backends.local.engine import TransformersEngine
from cards.errors import SettingError
from cards.events import Event, Fold, Proposed, Response
from cards.methods import Cascade
from cards.methods.base import Request
from cards.rewards import FunctionReward, ImplicitReward
from cards.rewards.base import Reward
from cards.sampling import GUIDE_VERDICT, VERDICT, uniforms
from cards.testing import check_law, normalised
from cards.usage import Usage, track_usage

pytestmark = pytest.mark.slow

PAIRS = FixedLength(2, 2)
GUIDE_TARGET, GUIDE_BETA = 0.9, 0.8
DRAWS = 2000


@cache
def opinion(text: str) -> float:
    """What the guide thinks of a text."""
    return 0.5 * value(text) + float(np.random.default_rng([7, *text.encode()]).normal())


async def opinion_of(prompt: str, response: str) -> float:
    return opinion(response)


GUIDE = FunctionReward(opinion_of, target=GUIDE_TARGET, name="guide")


def cascade(**options: Any) -> Cascade:
    settings: dict[str, Any] = {"guide": GUIDE, "guide_beta": GUIDE_BETA, "target": TARGET, "beta": BETA, "temperature": 1.0}
    return Cascade(**(settings | {"boundary": PAIRS, "width": 1, "max_rejections": 60} | options))


def spared(ids: Ids, beta: float = GUIDE_BETA) -> float:
    return math.exp(min(0.0, (opinion(reading(ids)) - GUIDE_TARGET) / beta))


Q = segments(2)


def tau(ids: Ids) -> float:
    return threshold(len(ids), 4)


def law(join: Any) -> Mapping[Ids, float]:
    return normalised({s: p * join(spared(s), passing(s, tau(s))) for s, p in Q.items()})


PLAIN = law(lambda early, late: late)
INDEPENDENT = law(lambda early, late: early * late)
COUPLED = law(min)


@pytest.mark.parametrize("width", [1, 3])
def test_accepted_segments_follow_q_times_both_chances(width: int) -> None:
    found = results(cascade(width=width), 4, DRAWS, segments=1)
    assert not any(r.segments[0].fallback for r in found)
    check_law(first_segments(found), INDEPENDENT, wrong=PLAIN)


def test_coupled_they_follow_q_times_the_lesser_chance() -> None:
    check_law(first_segments(results(cascade(coupled=True), 4, DRAWS, segments=1)), COUPLED, wrong=PLAIN)
    assert max(abs(COUPLED[s] - INDEPENDENT[s]) for s in Q) > 0.01  # else it would not matter


def test_every_segment_follows_the_law_of_its_prefix() -> None:
    def product(chance: Any) -> dict[Ids, float]:
        answers: dict[Ids, float] = {}
        for first, p in after((), chance).items():
            for second, w in (after(first, chance) if first != (END,) else {(): 1.0}).items():
                answers[first + second] = p * w
        return answers

    def after(prefix: Ids, chance: Any) -> Mapping[Ids, float]:
        q = segments(1, after=prefix)
        return normalised({s: w * chance(prefix + s) for s, w in q.items()})

    found = results(cascade(boundary=FixedLength(1, 1)), 2, draws=2000)
    both = product(lambda ids: spared(ids) * passing(ids, threshold(len(ids), 2)))
    check_law(Counter(r.token_ids for r in found), both, wrong=product(lambda ids: passing(ids, threshold(len(ids), 2))))


def test_coupled_with_a_guide_that_is_milder_the_answers_are_those_of_cards() -> None:
    """a1 >= a2 for every segment: the same accepted segments for the same seeds, and fewer of them read."""
    for early in ({"guide_target": TARGET - 0.7, "guide_beta": BETA}, {"guide_target": TARGET, "guide_beta": 2 * BETA}):
        found = results(cascade(guide=REWARD, coupled=True, alpha=1.0, max_rejections=20, **early), 6, draws=100)
        plain = results(cards(PAIRS, alpha=1.0), 6, draws=100)
        assert [r.segments for r in found] == [r.segments for r in plain]
        assert sum(r.usage.rejected for r in plain) > 100


class Counting(FunctionReward):
    """Notes the texts that it scores."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        super().__init__(self.rated)

    async def rated(self, prompt: str, response: str) -> float:
        self.asked.append(response)
        return value(response)


def events_of(
    method: Cascade, reward: Reward, seed: int, max_tokens: int = 6, trace: bool = True
) -> tuple[list[Event], Result]:
    async def run() -> tuple[list[Event], Result]:
        source, usage = engine(), Usage()
        fold, events = Fold(usage, seed, method.name), []
        with track_usage(usage):
            request = Request(source.encode("?"), max_tokens, seed, trace=trace)
            async with aclosing(method.stream(request, source, reward)) as stream:
                async for event in stream:
                    fold.add(event)
                    events.append(event)
        return events, fold.result()

    return asyncio.run(run())


@pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("width", [1, 4])
def test_the_reward_is_asked_only_about_what_passed_the_guide(coupled: bool, width: int) -> None:
    held_back = 0
    for seed in range(15):
        reward = Counting()
        events, result = events_of(cascade(coupled=coupled, width=width, max_rejections=5), reward, seed)
        scored = [e for e in events if isinstance(e, Scored)]
        prefix, answers = Response(), [""]
        for segment in result.segments:
            u = uniforms(seed, len(answers) - 1, 0, 6, VERDICT if coupled else GUIDE_VERDICT)
            for number, candidate in enumerate(drawn_at(events, len(answers) - 1)):
                text = (prefix + candidate).text
                passed = math.log(u[number]) < (opinion(text) - GUIDE_TARGET) / GUIDE_BETA
                assert passed == any((e.position, e.candidate) == (len(answers) - 1, number) for e in scored)
                assert not passed or text in reward.asked
                held_back += not passed
            prefix = prefix + segment
            answers.append(prefix.text)
        if width == 1:
            assert len(reward.asked) == 1 + len(scored)
            assert result.usage.rm_calls == 1 + len(scored) + result.usage.candidates  # the guide's calls count too
    assert held_back > 15


def drawn_at(events: Sequence[Event], position: int) -> list[Any]:
    return [e.segment for e in events if isinstance(e, Proposed) and e.position == position]


def test_what_the_guide_holds_back_has_no_reward() -> None:
    events, result = events_of(cascade(guide_target=0.9), REWARD, seed=3)
    rejected = [e.segment for e in events if isinstance(e, Rejected)]
    assert {s.reward is None for s in rejected} == {True, False}
    assert all((s.reward is None) == (s.threshold is None) for s in rejected)
    assert sum(len(s.rejected) for s in result.segments) == result.usage.rejected


@pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
def test_the_fallback_is_the_best_that_the_reward_has_scored_else_the_guides_best() -> None:
    kinds = set()
    for seed in range(60):
        method = cascade(target=9.0, alpha=1.0, guide_beta=0.05, guide_target=1.2, max_rejections=3)
        events, result = events_of(method, REWARD, seed, max_tokens=2)
        [taken] = result.segments
        drawn = drawn_at(events, 0)
        assert (taken.fallback, taken.candidates, len(drawn)) == (True, 4, 4)
        known = {e.candidate: e.segment.reward for e in events if isinstance(e, Scored)}
        if known:
            best = max(known, key=lambda i: known[i] or 0.0)
            assert taken.reward == known[best]
        else:
            best = max(range(4), key=lambda i: opinion(drawn[i].text))
            assert taken.reward is None
        assert taken.token_ids == drawn[best].token_ids
        kinds.add(bool(known))
    assert kinds == {True, False}


@pytest.mark.parametrize("width", [2, 7, "auto"])
@pytest.mark.parametrize("coupled", [False, True])
def test_drawing_several_at_once_gives_the_same_text(width: Any, coupled: bool) -> None:
    for alone, several in zip(
        results(cascade(coupled=coupled, max_rejections=9), 6, 20),
        results(cascade(coupled=coupled, max_rejections=9, width=width), 6, 20),
        strict=True,
    ):
        assert several.segments == alone.segments


def implicit(pair: Pair) -> ImplicitReward:
    models = (language_model("llama", seed=5).double(), pair.lm)
    tuned, untuned = (TransformersEngine(copy.deepcopy(m), word_tokenizer(), slots=16) for m in models)
    return ImplicitReward(tuned, untuned, beta=0.3)


def test_the_guide_is_loaded_by_its_name() -> None:
    decoder = Decoder("tiny", FunctionReward(lambda p, r: 9.0, target=0.0), "cascade")
    assert isinstance(decoder.method, Cascade)
    assert isinstance(decoder.method.guide, ImplicitReward)
    usage = decoder([{"role": "user", "content": "Hello!"}], max_tokens=8).usage
    assert usage.rm_calls > usage.candidates
    assert usage.rm_tokens > 0


def test_settings_out_of_range_are_refused() -> None:
    for bad, named in [({"guide_beta": 0.0}, "guide_beta"), ({"beta": -1.0}, "beta"), ({"alpha": 2.0}, "alpha")]:
        with pytest.raises(SettingError, match=named):
            Cascade(**bad)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="'rated': set guide_target"):
        events_of(cascade(guide=Counting()), REWARD, 0)
    assert isinstance(cascade(guide=Counting(), guide_target=0.0), CARDS)
