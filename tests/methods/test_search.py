"""Searches over incomplete answers find what a search by hand finds, and say so as early as it is certain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from helpers.letter_world import engine, results, value
from helpers.search_reference import (
    MAX,
    ByHand,
    Node,
    ada_search,
    beam_search,
    blockwise,
    cbs,
    dvts,
    guided_beam_search,
    guided_tree_bon,
    speculative_rejection,
    tree_bon,
)

from cards import CARDS, Accepted, Decoder, Done, FixedLength, Proposed, Rejected, Result, Scored, Whole
from cards.errors import MismatchError, SettingError
from cards.events import Event
from cards.methods import CBS, DVTS, SMC, STARS, AdaSearch, Blockwise, PRMBeamSearch, SpeculativeRejection, TreeBoN
from cards.methods.base import Method, Request
from cards.rewards import FunctionReward

pytestmark = pytest.mark.slow

SEEDS = 60
PLAIN: dict[str, Any] = {"temperature": 1.0, "top_k": None}


async def reward_of(prompt: str, response: str) -> float:
    return value(response)


async def second_opinion(prompt: str, response: str) -> float:
    return value(response[::-1] + "?")


STEPS: dict[str, Any] = {"children": 2, "boundary": FixedLength(maximum=2), **PLAIN}
TREE: dict[str, Any] = {"n": 8, "layers": 3, **PLAIN}
CASES: dict[str, tuple[Method, Callable[[ByHand], Node]]] = {
    "blockwise": (Blockwise(candidates=4, block=2, **PLAIN), blockwise),
    "ada-search": (AdaSearch(candidates=4, block=2, **PLAIN), ada_search),
    "cbs": (CBS(beams=3, children=2, block=2, **PLAIN), cbs),
    "speculative-rejection": (SpeculativeRejection(n=7, first=1, **PLAIN), speculative_rejection),
    "tree-bon": (TreeBoN(**TREE), tree_bon),
    "guided tree-bon": (TreeBoN(guide=FunctionReward(second_opinion), **TREE), guided_tree_bon),
    "prm-beam-search": (PRMBeamSearch(beams=3, **STEPS), beam_search),
    "guided prm-beam-search": (PRMBeamSearch(beams=3, process=FunctionReward(second_opinion), **STEPS), guided_beam_search),
    "dvts": (DVTS(trees=3, **STEPS), dvts),
}
METHODS = [method for method, _ in CASES.values()] + [SMC(particles=4, boundary=FixedLength(maximum=2), **PLAIN)]


@pytest.mark.parametrize("case", CASES)
def test_the_answer_is_the_one_that_a_search_by_hand_finds(case: str) -> None:
    method, by_hand = CASES[case]
    found = results(method, MAX, SEEDS)
    for seed, result in enumerate(found):
        hand = ByHand(seed)
        node = by_hand(hand)
        assert result.token_ids == node.ids
        assert result.reward == node.reward
        assert len(result.segments) == len(node.path)
        assert (result.usage.candidates, result.usage.rounds) == (hand.drawn, hand.blocks)
    assert len({r.token_ids for r in found}) > SEEDS / 3
    assert len({len(r.segments) for r in found}) > 1


@pytest.mark.parametrize("case", CASES)
def test_a_segment_is_accepted_before_the_next_block_is_drawn_if_all_that_live_share_it(case: str) -> None:
    method, by_hand = CASES[case]
    early = 0
    for seed in range(SEEDS):
        hand = ByHand(seed)
        node = by_hand(hand)
        accepted: list[tuple[int, int]] = []
        before: list[tuple[tuple[int, int], ...]] = []
        for event in events_of(method, seed):
            if isinstance(event, Proposed) and event.position == len(before) + 1:
                before.append(tuple(accepted))
            elif isinstance(event, Accepted):
                accepted.append((event.position, event.candidate))
        assert tuple(accepted) == node.path
        assert before == (hand.released or [])[: len(before)]
        early += sum(map(len, before))
    assert early > 0 or case == "dvts"  # trees share nothing before the end


def events_of(method: Method, seed: int = 0, **options: Any) -> list[Event]:
    return list(Decoder(engine(), reward_of, method).stream("?", max_tokens=MAX, seed=seed, **options))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_every_candidate_is_drawn_and_scored_and_gets_one_verdict(method: Method) -> None:
    for seed in range(20):
        events = events_of(method, seed, trace=True)
        result = last(events)
        drawn = [(e.position, e.candidate) for e in events if isinstance(e, Proposed)]
        judged = [(e.position, e.candidate) for e in events if isinstance(e, Accepted | Rejected)]
        assert drawn == sorted(drawn) == sorted(set(judged))
        assert len(judged) == len(drawn)
        scored = {(e.position, e.candidate): e.segment.reward for e in events if isinstance(e, Scored)}
        assert all(scored[e.position, e.candidate] == e.segment.reward for e in events if isinstance(e, Accepted | Rejected))
        usage = result.usage
        assert usage.candidates == usage.accepted + usage.rejected == sum(s.candidates for s in result.segments)
        assert usage.lm_decoded_tokens == sum(
            len(s.token_ids) + sum(len(r.token_ids) for r in s.rejected) for s in result.segments
        )
        assert usage.rm_calls == len([e for e in events if isinstance(e, Scored)])
        assert not any(s.rejected for s in last(events_of(method, seed)).segments)


def last(events: list[Event]) -> Result:
    assert isinstance(events[-1], Done)
    return events[-1].result


def test_all_children_of_a_round_are_scored_in_one_call_and_finished_ones_not_again() -> None:
    calls: list[int] = []

    class Counting(FunctionReward):
        async def rate(self, prompt: Any, responses: Any) -> Any:
            calls.append(len(responses))
            return await super().rate(prompt, responses)

    result = Decoder(engine(), Counting(reward_of), CBS(beams=3, children=2, block=2, **PLAIN))("?", max_tokens=MAX, seed=1)
    assert len(calls) == result.usage.rounds > 2
    assert sum(calls) == result.usage.candidates


@pytest.mark.parametrize("children", [2, 4])
def test_the_guide_scores_what_is_incomplete_and_the_reward_what_is_left_at_the_end(children: int) -> None:
    guided, rewarded = [], []

    async def guide(prompt: str, response: str) -> float:
        guided.append(response)
        return -len(response)

    async def reward(prompt: str, response: str) -> float:
        rewarded.append(response)
        return value(response)

    method = TreeBoN(guide=FunctionReward(guide), n=4, children=children, layers=2, **PLAIN)
    early = 0
    for seed in range(20):
        guided.clear()
        rewarded.clear()
        result = Decoder(engine(), reward, method)("?", max_tokens=6, seed=seed)
        early += len(result.segments) == 1
        assert len(guided) == 4
        assert result.text in rewarded
        assert result.reward == max(map(value, rewarded))
        assert result.usage.rm_calls == len(guided) + len(rewarded)
    assert 0 < early < 20


@pytest.mark.parametrize("schedule", ["exponential", "linear"])
@pytest.mark.parametrize("max_tokens", [1, 16, 17, 128, 1000])
@pytest.mark.parametrize("candidates", [1, 2, 8])
def test_ada_search_spends_what_blockwise_spends_but_early(schedule: Any, max_tokens: int, candidates: int) -> None:
    counts = AdaSearch(candidates=candidates, schedule=schedule).counts(max_tokens)
    assert len(counts) == -(-max_tokens // 16)
    assert sum(counts) == candidates * len(counts)
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] >= 1
    if len(counts) > 1 and candidates > 1:
        assert counts[0] > counts[-1]


def test_known_schedules() -> None:
    assert AdaSearch().counts(128) == [30, 16, 9, 4, 2, 1, 1, 1]
    assert AdaSearch(schedule="linear", candidates=3).counts(48) == [4, 3, 2]
    assert AdaSearch(decay=1.0).counts(64) == [8, 8, 8, 8]


def test_the_layers_of_a_tree_share_the_length_and_the_last_one_runs_to_the_end() -> None:
    part = FixedLength(maximum=3)
    assert TreeBoN().plan(10) == [(part, 16), (part, 4), (part, 4), (Whole(), 4)]
    assert TreeBoN(layers=1).plan(10) == [(Whole(), 16)]


def test_ada_search_without_decay_is_blockwise() -> None:
    ada = results(AdaSearch(candidates=3, block=2, decay=1.0, **PLAIN), MAX, 20)
    plain = results(Blockwise(candidates=3, block=2, **PLAIN), MAX, 20)
    assert [r.segments for r in ada] == [r.segments for r in plain]


def test_stars_is_cards_with_segments_of_one_length() -> None:
    settings: dict[str, Any] = {"target": 1.5, "beta": 0.5, "temperature": 1.0, "max_rejections": 5}
    stars = results(STARS(block=3, **settings), MAX, 40)
    assert [r.segments for r in stars] == [r.segments for r in results(CARDS(boundary=FixedLength(3, 3), **settings), MAX, 40)]
    assert {r.method for r in stars} == {"stars"}
    assert {len(s.token_ids) for r in stars for s in r.segments[:-1]} == {3}


SMALL: list[Method] = [
    STARS(target=1.0, beta=0.5, block=4),
    Blockwise(candidates=3, block=4),
    AdaSearch(candidates=3, block=4),
    CBS(beams=2, children=3, block=4),
    TreeBoN(n=6, children=3, layers=3),
    SpeculativeRejection(n=6, first=3),
    SMC(particles=4, beta=0.3),
    SMC(particles=4, beta=0.3, resample=1.0, boundary=FixedLength(maximum=3)),
]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Blockwise(candidates=0), "candidates"),
        (lambda: Blockwise(block=0), "block"),
        (lambda: Blockwise(temperature=-1.0), "temperature"),
        (lambda: AdaSearch(candidates=0), "candidates"),
        (lambda: AdaSearch(block=0), "block"),
        (lambda: AdaSearch(schedule="steep"), "schedule"),  # type: ignore[arg-type]
        (lambda: AdaSearch(decay=0.0), "decay"),
        (lambda: AdaSearch(decay=1.1), "decay"),
        (lambda: AdaSearch(top_k=0), "top_k"),
        (lambda: CBS(beams=0), "beams"),
        (lambda: CBS(children=0), "children"),
        (lambda: CBS(block=0), "block"),
        (lambda: CBS(top_p=0.0), "top_p"),
        (lambda: TreeBoN(n=3, children=4), "children"),
        (lambda: TreeBoN(children=0), "children"),
        (lambda: TreeBoN(layers=0), "layers"),
        (lambda: TreeBoN(temperature=-1.0), "temperature"),
        (lambda: SpeculativeRejection(n=0), "n must"),
        (lambda: SpeculativeRejection(reject=1.0), "reject"),
        (lambda: SpeculativeRejection(reject=-0.1), "reject"),
        (lambda: SpeculativeRejection(first=0), "first"),
        (lambda: SpeculativeRejection(top_k=0), "top_k"),
        (lambda: STARS(block=0), "block"),
        (lambda: STARS(beta=0.0), "beta"),
        (lambda: STARS(alpha=2.0), "alpha"),
        (lambda: SMC(particles=0), "particles"),
        (lambda: SMC(beta=0.0), "beta"),
        (lambda: SMC(beta=float("inf")), "beta"),
        (lambda: SMC(resample=1.5), "resample"),
        (lambda: SMC(top_k=0), "top_k"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(make: Callable[[], Method], named: str) -> None:
    with pytest.raises(SettingError, match=named):
        make()


@pytest.mark.parametrize("method", SMALL[:-1], ids=lambda m: m.name)
def test_without_a_reward_a_search_refuses_by_its_own_name(method: Method) -> None:
    async def first() -> Event:
        source = engine()
        return await anext(method.stream(Request(source.encode("?")), source, None))

    with pytest.raises(MismatchError, match=f"'{method.name}' needs a reward"):
        asyncio.run(first())
