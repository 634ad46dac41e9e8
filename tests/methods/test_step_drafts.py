"""A draft whose steps and lookaheads are judged: rsd, gsi and cdsl."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
from helpers.letter_world import END, LETTERS, Ids, next_token, value
from helpers.model_pairs import Scripted, decoded, engine, other, texts, trace, value_of

from cards import Decoder, FixedLength, Prompt, Response
from cards.boundaries import Step, Whole
from cards.engines.mock import MockEngine
from cards.errors import SettingError
from cards.methods import CDSL, GSI, RSD, SpecReason, Vanilla
from cards.rewards import FunctionReward, GradeReward, Minimum, ProcessReward
from cards.testing import check_law

pytestmark = pytest.mark.slow

# rsd


def steps_of(*steps: str) -> MockEngine:
    """Writes these letters whatever came before, by position."""
    written = "".join(steps)
    return MockEngine(lambda ids: [float(written[len(ids) - 1] == c) for c in "ab.d"], "ab.d", end="d")


def test_rsd_keeps_good_steps_of_the_draft_and_has_the_others_written_by_the_lm() -> None:
    draft, lm = steps_of("aa.", "aa.", "aad"), steps_of("bb.", "bb.", "bbd")
    reward = Scripted({"aa.": 0.9, "aa.aa.": 0.8, "aa.bb.aa": 2.0})  # sigmoid: 0.711, 0.690, 0.881
    decoder = Decoder(lm, reward, RSD(proposer=draft, boundary=Step(delimiter=".")))
    shown, result = trace(decoder, trace=True)
    assert shown == [
        ("Proposed", 0, 0, "aa."),
        ("Scored", 0, 0, "aa."),
        ("Accepted", 0, 0, "aa."),
        ("Proposed", 1, 0, "aa."),
        ("Scored", 1, 0, "aa."),
        ("Rejected", 1, 0, "aa."),
        ("Proposed", 1, 1, "bb."),
        ("Accepted", 1, 1, "bb."),
        ("Proposed", 2, 0, "aa"),
        ("Scored", 2, 0, "aa"),
        ("Accepted", 2, 0, "aa"),
    ]
    assert reward.asked == ["aa.", "aa.aa.", "aa.bb.aa"]
    assert (result.text, result.finish_reason, result.reward) == ("aa.bb.aa", "stop", 2.0)
    assert [s.reward for s in result.segments] == [0.9, None, 2.0]
    assert result.segments[0].threshold == pytest.approx(math.log(0.7 / 0.3))
    assert [(r.text, r.reward) for r in result.segments[1].rejected] == [("aa.", 0.8)]
    usage = result.usage
    assert (usage.draft_decoded_tokens, usage.draft_kept_tokens) == (9, 6)
    assert (usage.lm_decoded_tokens, usage.lm_wasted_tokens, usage.rm_calls) == (3, 0, 3)
    assert (usage.rounds, usage.candidates, usage.accepted, usage.rejected) == (4, 4, 3, 1)


def test_rsd_steps_follow_their_law() -> None:
    """q_draft where it is good, else q: also when draft and LM are one, for the LM draws with numbers of its own."""
    for draft in (other(3), next_token):
        least = math.log(0.6 / 0.4)
        method = RSD(proposer=engine(draft), threshold=0.6, boundary=FixedLength(2, 2), temperature=1.0, top_k=None)
        draws = decoded(Decoder(engine(), FunctionReward(value_of), method), 700, max_tokens=2)
        q, first = texts(next_token, 2), texts(draft, 2)
        good = {ids: value("".join(LETTERS[t] for t in ids if t != END)) >= least for ids in q}
        refused = sum(p for ids, p in first.items() if not good[ids])
        assert 0.2 < refused < 0.95
        law = {ids: first.get(ids, 0.0) * good[ids] + refused * p for ids, p in q.items()}
        check_law(Counter(r.token_ids for r in draws), law, wrong=first)


@pytest.mark.parametrize("probability", [0.5, 0.7, 0.84, 0.95])
def test_rsd_compares_a_probability_with_its_threshold_as_it_is(probability: float) -> None:
    reward = FunctionReward(lambda p, r: probability, scale="probability")
    wrapped = Minimum([ProcessReward(reward, "."), ProcessReward(FunctionReward(lambda p, r: 9.0), ".", squash=True)])
    for process in (reward, wrapped):
        decoder = Decoder(steps_of("bbd"), reward, RSD(proposer=steps_of("aad"), process=process))
        assert decoder("a").text == ("aa" if probability >= 0.7 else "bb")


def test_rsd_scores_steps_with_the_process_reward() -> None:
    lm, process = steps_of("bbd"), Scripted({"aa": 5.0})
    result = Decoder(lm, Scripted({}), RSD(proposer=steps_of("aad"), process=process))("a")
    assert (result.text, process.asked) == ("aa", ["aa"])


# gsi


def letter(*p: float) -> MockEngine:
    """One letter, then the end."""
    return MockEngine(lambda ids: [*p, 0.0] if len(ids) == 1 else [0.0, 0.0, 0.0, 1.0], "abcd", end="d")


BIG, SMALL = (0.2, 0.3, 0.5), (0.6, 0.3, 0.1)
REWARDS = {"a": 2.0, "b": 0.5, "c": -1.0}


def tempered(p: Sequence[float], temperature: float) -> list[float]:
    weights = [x ** (1 / temperature) for x in p]
    return [w / sum(weights) for w in weights]


def gsi_law(n: int, beta: float, threshold: float, temperature: float, s: Sequence[float]) -> dict[str, float]:
    """Return the law by enumeration of all draws, for steps with the probabilities s."""
    big, small = tempered(BIG, temperature), tempered(SMALL, temperature)
    tilt = [r + math.log(b / q) / beta for r, b, q in zip(s, big, small, strict=True)]

    def soft(law: Sequence[float], score: Sequence[float]) -> list[float]:
        found = [0.0] * 3
        for drawn in product(range(3), repeat=n):
            weights = [math.exp(beta * score[i]) for i in drawn]
            for i, w in zip(drawn, weights, strict=True):
                found[i] += math.prod(law[j] for j in drawn) * w / sum(weights)
        return found

    first, again = soft(small, tilt), soft(big, s)
    refused = sum(p for p, t in zip(first, tilt, strict=True) if t < threshold)
    assert 0.05 < refused < 0.95
    return {c: p * (t >= threshold) + refused * q for c, p, t, q in zip("abc", first, tilt, again, strict=True)}


@pytest.mark.parametrize("scale", ["probability", "unbounded"])
@pytest.mark.parametrize(
    ("n", "beta", "threshold", "temperature"), [(1, 2.0, 0.5, 1.0), (3, 4.0, 0.65, 1.0), (3, 4.0, 0.6, 0.6)]
)
def test_gsi_follows_its_law(n: int, beta: float, threshold: float, temperature: float, scale: Any) -> None:
    method = GSI(proposer=letter(*SMALL), n=n, beta=beta, threshold=threshold, temperature=temperature, boundary=Whole())
    rewards = {"a": 0.9, "b": 0.6, "c": 0.3} if scale == "probability" else REWARDS
    reward = Scripted(rewards)
    reward.scale = scale
    draws = decoded(Decoder(letter(*BIG), reward, method), 900, max_tokens=2)
    s = [r if scale == "probability" else 1 / (1 + math.exp(-r)) for r in rewards.values()]
    squashed = [1 / (1 + math.exp(-x)) for x in s]
    law, wrong = (gsi_law(n, beta, threshold, temperature, values) for values in (s, squashed))
    check_law(
        Counter(r.text for r in draws),
        law,
        wrong=wrong if n > 1 and scale == "probability" else dict(zip("abc", BIG, strict=True)),
    )


def test_defaults_of_step_drafts_are_the_published_ones() -> None:
    assert RSD().threshold == 0.7
    assert (GSI().temperature, GSI().beta, GSI().beta * GSI().threshold) == (0.7, 20.0, 10.0)


def test_gsi_rejects_the_whole_round_of_the_draft_if_the_chosen_step_is_not_good_enough() -> None:
    reward = Scripted({"aa": -1.0, "bb": 0.0})
    method = GSI(proposer=steps_of("aad"), n=2, boundary=Whole())
    shown, result = trace(Decoder(steps_of("bbd"), reward, method), trace=True)
    assert [s[:3] for s in shown] == [
        *[(kind, 0, i) for i in (0, 1) for kind in ("Proposed", "Scored")],
        ("Rejected", 0, 0),
        ("Rejected", 0, 1),
        *[(kind, 0, i) for i in (2, 3) for kind in ("Proposed", "Scored")],
        *[(("Rejected", 0, 5 - i), ("Accepted", 0, i))[k] for k in (0, 1) for i in [shown[-1][2]]],
    ]
    assert (result.text, result.reward, len(result.segments[0].rejected)) == ("bb", 0.0, 3)
    usage = result.usage
    assert (usage.draft_decoded_tokens, usage.draft_kept_tokens) == (6, 0)
    assert (usage.lm_decoded_tokens, usage.lm_wasted_tokens, usage.rm_calls, usage.rounds) == (6, 3, 4, 2)


def test_gsi_keeps_a_step_of_the_draft_that_is_good_enough() -> None:
    reward = Scripted({"aa": 3.0})
    result = Decoder(steps_of("aad"), reward, GSI(proposer=steps_of("aad"), n=3, boundary=Whole()))("a")
    usage = result.usage
    assert (usage.draft_kept_tokens, usage.lm_decoded_tokens, usage.lm_wasted_tokens) == (3, 0, 0)


# cdsl


def scripts(**by_answer: str) -> MockEngine:
    """After an answer (by its text) these letters are likeliest, in falling order; elsewhere `rest`."""

    def model(ids: Ids) -> list[float]:
        falling = by_answer.get("".join("abc."[t] for t in ids[1:]) or "start", by_answer["rest"])
        return [[0.6, 0.3, 0.07, 0.03][falling.index(c)] for c in "abc."]

    return MockEngine(model, "abc.", end=".")


def test_cdsl_takes_what_both_agree_on_if_the_reward_is_high() -> None:
    lm = scripts(rest="abc.", aaa="b.ac")
    draft = scripts(rest="abc.")
    reward = Scripted({"aaa": 1.5, **{"aaab" + "a" * n: 0.0 for n in range(9)}})
    shown, result = trace(Decoder(lm, reward, CDSL(proposer=draft, lookahead=4, agreement=0.75)), max_tokens=3)
    assert shown == [(kind, 0, 0, "aaa") for kind in ("Proposed", "Scored", "Accepted")]
    assert (result.segments[0].threshold, result.reward, result.finish_reason) == (1.0, 1.5, "length")
    assert (result.usage.lm_steps, result.usage.draft_kept_tokens, result.usage.lm_wasted_tokens) == (1, 3, 0)


def test_cdsl_takes_one_token_by_the_drafts_lookahead_if_the_reward_is_low() -> None:
    """The draft would write aa behind anything; b is worth more than its lower probability costs."""
    lm, draft = scripts(rest="abc."), scripts(rest="abc.")
    reward = Scripted({"aa": 0.0, "aaa": 0.0, "baa": 1.0, "b": 0.5, "ba": 0.7, "bb": 0.9, "baaa": 2.0})
    method = CDSL(proposer=draft, lookahead=2, candidates=2, weight=1.0)
    shown, result = trace(Decoder(lm, reward, method), max_tokens=2)
    assert shown == [
        ("Proposed", 0, 0, "aa"),
        ("Scored", 0, 0, "aa"),
        ("Rejected", 0, 0, "aa"),
        ("Proposed", 0, 1, "b"),
        ("Accepted", 0, 1, "b"),
        *[("Proposed", 1, 0, "a"), ("Scored", 1, 0, "a"), ("Rejected", 1, 0, "a")],
        *[("Proposed", 1, 1, "a"), ("Scored", 1, 1, "a"), ("Accepted", 1, 1, "a")],
    ]
    assert reward.asked == ["aa", "aa", "ba", "ba", "ba", "bb"]
    assert (result.text, result.segments[0].reward, result.reward) == ("ba", None, 0.7)
    assert (result.usage.lm_decoded_tokens, result.usage.lm_wasted_tokens) == (2, 0)


def test_cdsl_looks_ahead_with_the_lm_where_the_draft_is_no_guide() -> None:
    lm, draft = scripts(rest="abc."), scripts(rest="cab.")
    reward = Scripted({"aaa": 0.0, "baa": 5.0, "bba": 9.0, "bbb": 0.0})
    shown, result = trace(Decoder(lm, reward, CDSL(proposer=draft, lookahead=2, candidates=2)), max_tokens=3, stop="ba")
    assert shown[:4] == [(kind, i, 0, text) for i, text in enumerate(["", "b"]) for kind in ("Proposed", "Accepted")]
    assert reward.asked == ["aaa", "baa", "baa", "bba", "bba", "bbb"]  # with the b that is held back: it may begin a stop
    assert (result.text, result.finish_reason, result.reward) == ("b", "stop", 9.0)


def test_cdsl_is_greedy_decoding_without_a_say_of_the_reward() -> None:
    greedy = Decoder(engine(), None, Vanilla(temperature=0.0))
    reward = FunctionReward(value_of, target=-100.0)
    for draft in (other(3), next_token):
        for target in (-100.0, 100.0):
            method = CDSL(proposer=engine(draft), weight=0.0, target=target, lookahead=3)
            assert Decoder(engine(), reward, method)("a", max_tokens=9).text == greedy("a", max_tokens=9).text


# spec-reason


DIGITS = "0123456789"


def grading(weights: dict[int, float]) -> MockEngine:
    """An LM that writes b, and grades a step by these digits."""

    def model(ids: Ids) -> list[float]:
        asked = any(token < 10 for token in ids)  # the question has digits
        return [*(weights.get(d, 0.0) if asked else 0.0 for d in range(10)), 0.0, float(not asked)]

    return MockEngine(model, [*DIGITS, "a", "b"], context=4096)


@pytest.mark.parametrize(("weights", "grade"), [({7: 1.0}, 7.0), ({0: 0.25, 8: 0.75}, 6.0), ({9: 0.5, 3: 0.1}, 8.0)])
def test_spec_reason_accepts_steps_that_the_lm_grades_high(weights: dict[int, float], grade: float) -> None:
    lm = grading(weights)
    draft = MockEngine(lambda ids: [0.0] * 10 + [1.0, 0.0], [*DIGITS, "a", "b"])
    for threshold in (grade / 9 - 0.01, grade / 9 + 0.01):
        method = SpecReason(proposer=draft, threshold=threshold, boundary=FixedLength(maximum=2))
        result = Decoder(lm, None, method)("ab" * 8, max_tokens=4)
        accepted = threshold < grade / 9
        assert result.text == ("aaaa" if accepted else "bbbb")
        assert result.usage.rm_calls == 2
        assert result.usage.rm_tokens == 2  # of the mock, which counts the last one
        if accepted:
            assert result.segments[0].reward == pytest.approx(grade / 9, abs=1e-6)


def test_grades_are_asked_with_the_conversation_and_need_digits() -> None:
    lm = grading({5: 1.0})
    asked: list[str] = []
    plain = lm.encode

    def encode(prompt: Any) -> Any:
        asked.append(prompt if isinstance(prompt, str) else prompt[0]["content"])
        return plain(prompt)

    lm.encode = encode  # type: ignore[method-assign]
    reward = GradeReward(lm, question="Rate {conversation} from 0 to 9")
    [score] = asyncio.run(reward.score(Prompt("aab"), [Response("ba")]))
    assert score == pytest.approx(5 / 9)
    assert asked[0].startswith("Rate aabba from")
    with pytest.raises(SettingError, match="conversation"):
        GradeReward(lm, question="How good?")
    with pytest.raises(SettingError, match="digits must be single tokens of 'mock'"):
        GradeReward(engine())
    assert SpecReason().threshold == pytest.approx(7 / 9)
    assert SpecReason().needed == {"segments", "logits"}
