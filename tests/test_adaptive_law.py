"""A threshold that is a quantile of the prompt's own candidates: the stated law, enumerated."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from typing import Any, cast

import pytest
from helpers.letter_world import END, Ids, Law, engine, reading, results, segments, value

from cards import CARDS, Decoder, FixedLength
from cards.acceptance import quantile_of
from cards.errors import SettingError
from cards.methods import BestOfN
from cards.methods.segments.cascade import Cascade
from cards.testing import MockReward, check_law, normalised

BETA, PILOTS, GAIN = 0.5, 3, -0.1


def adaptive(**options: Any) -> CARDS:
    settings: dict[str, Any] = {"quantile": 0.6, "pilots": PILOTS, "alpha": 1.0, "beta": BETA, "max_rejections": 40}
    return CARDS(**settings | {"temperature": 1.0, "top_k": None, "boundary": FixedLength(1, 1), "width": 1} | options)


def hard(reward: float, tau: float) -> float:
    return float(reward >= tau)


def soft(reward: float, tau: float) -> float:
    return math.exp(min(0.0, (reward - tau) / BETA))


def first_law(passing: Callable[[float, float], float], rank: int) -> Law:
    """Of the first segment: for all pilots, the first in order that passes their rank-th smallest reward."""
    q, law = segments(1), Law()
    for pilots in product(q, repeat=PILOTS):
        rewards = [value(reading(s)) for s in pilots]
        tau, left = sorted(rewards)[rank - 1], math.prod(q[s] for s in pilots)
        for segment, reward in zip(pilots, rewards, strict=True):
            law[segment] = law.get(segment, 0.0) + left * passing(reward, tau)
            left *= 1 - passing(reward, tau)
    assert math.isclose(sum(law.values()), 1.0)  # with alpha 1 one of the pilots always passes
    return law


@pytest.mark.parametrize(("kind", "passing"), [("hard", hard), ("soft", soft)])
def test_the_first_segment_is_the_first_pilot_that_passes(kind: Any, passing: Callable[[float, float], float]) -> None:
    law = first_law(passing, 2)  # ceil(0.6 * 3)
    found = results(adaptive(acceptance=kind), 4, 1200, segments=1)
    check_law(Counter(r.segments[0].token_ids for r in found), law, wrong=segments(1))
    check_law(Counter(r.segments[0].token_ids for r in found), law, wrong=first_law(passing, 3))


def test_given_the_threshold_later_segments_follow_the_law_of_cards() -> None:
    found = results(adaptive(acceptance="soft"), 2, 1200)
    by_state: dict[tuple[Ids, float], Counter[Ids]] = {}
    for result in found:
        if len(result.segments) == 2 and not result.segments[1].fallback:
            state = (result.segments[0].token_ids, float(result.segments[1].threshold or 0))
            by_state.setdefault(state, Counter())[result.segments[1].token_ids] += 1
    (prefix, tau), observed = max(by_state.items(), key=lambda item: item[1].total())
    assert observed.total() > 100
    q = segments(1, after=prefix)
    law = normalised({s: p * soft(value(reading(prefix + s)), tau) for s, p in q.items()})
    check_law(observed, law, wrong=q)


def gain_law(passing: Callable[[float, float], float], gain: float, *, tests_ends: bool = False) -> Law:
    """Return the law of the first segment. The LM decides whether the response ends at once. Other segments must add reward."""
    q, tau = segments(2), value(reading(())) + gain
    weights = {s: p * passing(value(reading(s)), tau) for s, p in q.items()}
    if tests_ends:
        return normalised(weights)
    end, rest = q[(END,)], normalised({s: weight for s, weight in weights.items() if s != (END,)})
    return {(END,): end} | {s: (1 - end) * p for s, p in rest.items()}


@pytest.mark.parametrize("ends", ["lm", "reward"])
@pytest.mark.parametrize("setting", ["gain", "target"])
@pytest.mark.parametrize(("kind", "passing", "rise"), [("hard", hard, 0.3), ("soft", soft, 1.0)])
def test_each_segment_reaches_the_threshold_and_the_lm_or_the_reward_ends_the_response(
    kind: Any, passing: Callable[[float, float], float], rise: float, setting: str, ends: Any
) -> None:
    level = rise if setting == "gain" else value(reading(())) + rise
    method = adaptive(quantile=None, acceptance=kind, boundary=FixedLength(2, 2), ends=ends, **{setting: level})
    assert replace(method, ends=None).lm_ends == (setting == "gain")
    firsts = [result.segments[0] for result in results(method, 4, 2000, segments=1)]
    for first in firsts:
        untested = ends == "lm" and first.token_ids == (END,)
        assert first.threshold == (None if untested else pytest.approx(value(reading(())) + rise))
    observed = Counter(first.token_ids for first in firsts if not first.fallback)
    law, tested = (gain_law(passing, rise, tests_ends=tests) for tests in (ends == "reward", True))
    check_law(observed, law, wrong=segments(2))
    if ends == "lm":
        check_law(observed, law, wrong=tested)


def test_with_gain_the_threshold_follows_the_reward_reached() -> None:
    method = adaptive(quantile=None, gain=GAIN, acceptance="hard")
    for result in results(method, 2, 20):
        for before, after in pairwise(result.segments):
            assert after.threshold in (None, pytest.approx(cast(float, before.reward) + GAIN))


def test_without_any_target_no_segment_may_lower_the_reward() -> None:
    free, known = MockReward(target=None), MockReward(target=1.0)
    bare = CARDS()
    assert bare.resolved(free) == CARDS(gain=0.0, acceptance="hard")
    assert bare.resolved(known) == bare
    for chosen in (CARDS(target=1.0), CARDS(quantile=0.5), CARDS(gain=0.5)):
        assert chosen.resolved(free) == chosen
    nested = BestOfN(n=2, inner=bare).resolved(free)
    assert nested == BestOfN(n=2, inner=bare.resolved(free))
    decoder = Decoder(engine(), free, bare)
    explicit = Decoder(engine(), free, CARDS(gain=0.0, acceptance="hard"))
    for seed in range(5):
        assert decoder("?", max_tokens=6, seed=seed).segments == explicit("?", max_tokens=6, seed=seed).segments


def test_gain_starts_at_the_reward_of_the_prompt_or_at_the_quantile_of_the_pilots() -> None:
    alone = results(adaptive(quantile=None, gain=GAIN, acceptance="hard"), 2, 5, segments=1)
    assert [r.segments[0].threshold for r in alone] == pytest.approx([value(reading(())) + GAIN] * 5)
    piloted, quantile = (results(adaptive(acceptance="hard", **gain), 2, 5) for gain in ({"gain": GAIN}, {}))
    assert [r.segments[0] for r in piloted] == [r.segments[0] for r in quantile]
    assert [r.segments[1].threshold for r in piloted] == [pytest.approx(r.segments[0].reward + GAIN) for r in piloted]  # type: ignore[operator]


def test_with_the_hard_test_the_highest_pilots_are_equally_likely() -> None:
    found = results(adaptive(acceptance="hard", pilots=5, boundary=FixedLength(3, 3)), 6, draws=200, segments=1)
    assert {r.segments[0].candidates for r in found} == {1, 2, 3}  # rank 3 of 5: three pass, so the third at the latest
    assert all(r.segments[0].reward >= r.segments[0].threshold for r in found)  # type: ignore[operator]


def test_pilots_are_on_the_books_and_the_width_changes_nothing() -> None:
    one = adaptive(acceptance="hard", pilots=4, quantile=1.0)
    for alone, several in zip(results(one, 6, 30), results(replace(one, width=5), 6, 30), strict=True):
        assert several.segments == alone.segments
        assert several.usage.candidates == alone.usage.candidates
        later = sum(s.candidates for s in alone.segments[1:])
        assert alone.usage.candidates == 4 + later
        assert alone.usage.rm_calls == 1 + 4 + later
        assert max(s.threshold for s in alone.segments) == alone.segments[0].reward  # type: ignore[type-var]


def test_quantiles_are_order_statistics() -> None:
    assert [quantile_of([3.0, 1.0, 2.0, 4.0], q) for q in (0, 0.25, 0.26, 0.5, 0.75, 1)] == [1, 1, 2, 2, 3, 4]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"quantile": 1.2}, "quantile must be between 0 and 1"),
        ({"quantile": 0.5, "target": 1.0}, "set only one"),
        ({"gain": 0.5, "target": 1.0}, "set only one"),
        ({"quantile": 0.5, "pilots": 0}, "pilots must be at least 1"),
        ({"quantile": 0.5, "pilots": 9, "max_rejections": 8}, "max_rejections = 8"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        CARDS(**settings)


@pytest.mark.parametrize("settings", [{"quantile": 0.5}, {"gain": 0.5}])
def test_a_cascade_has_neither_quantile_nor_gain(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="Set target"):
        Cascade(**settings)
