"""Votes on final answers, and branches that begin with what led to the leading one."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from helpers.mock_models import count_of_b, mock
from scipy import stats

from cards import Decoder, Done, Proposed, Segment, Step
from cards.engines.mock import MockEngine
from cards.errors import MismatchError
from cards.methods import PathConsistency, SelfConsistency, Vanilla
from cards.methods.responses.path_consistency import confidence_of
from cards.methods.responses.self_consistency import final_answer


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("3 and 4 make 7.", "7"),
        ("It costs $1,234.50 in all.", "1234.5"),
        ("So -12 degrees", "-12"),
        ("#### 42\nChecked 3 times.", "42"),
        ("#### $1,000.00", "1000"),
        (r"Thus \boxed{\frac{1}{2}} as 3 said", r"\frac{1}{2}"),
        (r"\boxed{7} no, \boxed{8}.", "8"),
        ("no number", None),
        ("", None),
        ("points (1,2)", "2"),
        ("100", "100"),
        ("3.0", "3"),
    ],
)
def test_the_final_answer_is_what_it_is_usually_marked_by_else_the_last_number(text: str, want: str | None) -> None:
    assert final_answer(text) == want


@pytest.mark.parametrize(
    ("pattern", "text", "want"),
    [
        (r"(?i)\b(yes|no)\b", "No... YES, yes? No!", "no"),
        (r"answer is (\w+)", "The answer is Blue. The answer is red.", "red"),
        (r"\w+\.", "Blue. Red.", "red"),
        (r"x(y)?", "ab x", "x"),
        (r"A: (\w+)|B: (\w+)", "A: one, B: two", "two"),
        ("z", "ab", None),
    ],
)
def test_a_pattern_of_ones_own_finds_the_last_match_or_its_first_group(pattern: str, text: str, want: str | None) -> None:
    assert final_answer(text, pattern) == want


def test_how_an_answer_is_written_does_not_matter_for_the_vote() -> None:
    for equal in (["1,000", "1000", "1000.00", "$1000."], ["Yes", "yes.", " YES "]):
        assert len({final_answer("#### " + text) for text in equal}) == 1
    assert final_answer("#### (1,2)") != final_answer("#### (12)")


def chosen(method: SelfConsistency, texts: list[str], rewards: list[float] | None = None) -> int:
    given: Sequence[float | None] = rewards or [None] * len(texts)
    return asyncio.run(method.choose([Segment(t, (), reward=r) for t, r in zip(texts, given, strict=True)], 0))


def test_the_first_of_the_majority_is_taken_and_ties_go_to_the_answer_seen_first() -> None:
    assert chosen(SelfConsistency(), ["is 1", "so 2", "is 3", "2 then", "2"]) == 1
    assert chosen(SelfConsistency(), ["none", "3", "4", "4", "3"]) == 1
    assert chosen(SelfConsistency(), ["none", "none", "none", "5"]) == 3
    assert chosen(SelfConsistency(), ["none", "neither"]) == 0


def test_rewards_can_weigh_the_votes() -> None:
    texts, rewards = ["1", "1", "2", "1", "2"], [0.0, 0.5, 1.0, 0.0, 2.0]
    assert chosen(SelfConsistency(), texts) == 0
    assert chosen(SelfConsistency(beta=0.5), texts, rewards) == 4
    assert chosen(SelfConsistency(beta=100.0), texts, rewards) == 1
    assert chosen(SelfConsistency(beta=1e-3), texts, [1e4, 0.0, -1e4, 0.0, 0.0]) == 0


@pytest.mark.parametrize("seed", range(30))
def test_votes_equal_a_count_by_hand(seed: int) -> None:
    random = np.random.default_rng(seed)
    finals = [str(x) for x in random.integers(0, 4, 9)]
    weights = random.uniform(0.5, 2.0, 9)
    shares = {f: sum(w for g, w in zip(finals, weights, strict=True) if g == f) for f in finals}
    best = max(shares, key=lambda f: shares[f])
    want = max((i for i in range(9) if finals[i] == best), key=lambda i: weights[i])
    assert chosen(SelfConsistency(beta=0.3), finals, [0.3 * float(np.log(w)) for w in weights]) == want
    counts = Counter(finals)
    assert chosen(SelfConsistency(), finals) == finals.index(max(finals, key=lambda f: counts[f]))


def test_a_reward_is_asked_for_and_paid_for_only_if_it_weighs_votes() -> None:
    with pytest.raises(MismatchError, match="needs reward"):
        Decoder(mock(), None, SelfConsistency(beta=1.0))
    plain = Decoder(mock(), count_of_b, SelfConsistency())("ab", max_tokens=4)
    assert (plain.usage.rm_calls, plain.reward) == (0, None)
    weighed = Decoder(mock(), count_of_b, SelfConsistency(n=6, beta=1.0))("ab", max_tokens=4)
    assert weighed.usage.rm_calls == 6
    assert weighed.reward == weighed.text.count("b") / 2


def test_confidence_is_a_tail_of_the_beta_law() -> None:
    for v1 in range(8):
        for v2 in range(v1 + 1):
            finals = ["a"] * v1 + ["b"] * v2 + [None] * 3 + ["c"] * min(v2, 1)
            assert confidence_of(finals) == pytest.approx(stats.beta.sf(0.5, v1 + 1, v2 + 1))


def reasoner() -> MockEngine:
    """Three steps of one to three letters that end in a full stop, then a digit that the last letters favour; then the end."""
    tokens = ["x", "y", ".", "1", "2", "<end>"]

    def model(ids: tuple[int, ...]) -> list[float]:
        if ids and ids[-1] in (3, 4):
            return [0, 0, 0, 0, 0, 1]
        if ids.count(2) == 4:  # the prompt has one
            ones = 0.85 if ids[-2] == 0 else 0.3
            return [0, 0, 0, ones, 1 - ones, 0]
        length = len(ids) - 1 - max((i for i, t in enumerate(ids) if t == 2), default=-1)
        return [0, 0, 1, 0, 0, 0] if length == 3 else [0.4, 0.3, 0.3, 0, 0, 0] if length else [0.5, 0.5, 0, 0, 0, 0]

    return MockEngine(model, tokens, end="<end>")


DIGIT = r"\d"


def branches(method: PathConsistency, seed: int) -> tuple[list[Segment], Segment, int]:
    *events, done = list(Decoder(reasoner(), None, method).stream("x.", max_tokens=40, seed=seed))
    assert isinstance(done, Done)
    [segment] = done.result.segments
    assert done.result.usage.rounds == -(-method.branches // method.window)
    return [e.segment for e in events if isinstance(e, Proposed)], segment, done.result.usage.lm_decoded_tokens


@pytest.mark.parametrize("window", [1, 3, 5])
def test_branches_begin_with_the_steps_of_the_leader_one_more_each_time(window: int) -> None:
    """Against the rule written anew on texts: branches, window by window, and the tokens that were drawn for them."""
    grown = 0
    for seed in range(12):
        method = PathConsistency(
            branches=11, window=window, confidence=0.7, pattern=DIGIT, boundary=Step(delimiter="."), temperature=1.0
        )
        found, segment, decoded = branches(method, seed)
        assert len(found) == 11
        texts, prefix, drawn = [s.text for s in found], "", 0
        for first in range(0, 11, window):
            latest = texts[first : first + window]
            assert all(t.startswith(prefix) for t in latest)
            drawn += sum(len(t) + 1 - len(prefix) for t in latest)
            votes = Counter(t[-1] for t in texts[: first + window])
            (leader, v1), (_, v2) = [*votes.most_common(), ("", 0)][:2]
            if stats.beta.sf(0.5, v1 + 1, v2 + 1) >= 0.7 and any(t[-1] == leader for t in latest):
                model = next(t for t in latest if t[-1] == leader)
                step = re.match(r"[xy]*\.", model[len(prefix) :])
                prefix += step[0] if step else ""
        grown += prefix.count(".") == 3
        assert decoded == drawn
        counts = Counter(t[-1] for t in texts)
        assert segment.text == next(t for t in texts if counts[t[-1]] == max(counts.values()))
        assert segment.token_ids[-1] == 5
    assert window == 5 or grown > 3


def test_without_confidence_it_is_self_consistency() -> None:
    for window in (1, 4, 20):
        path = PathConsistency(branches=9, window=window, confidence=1.0, pattern=DIGIT)
        votes = SelfConsistency(n=9, pattern=DIGIT)
        for seed in range(5):
            one, other = (Decoder(reasoner(), None, m)("x.", max_tokens=40, seed=seed, trace=True) for m in (path, votes))
            assert one.segments == other.segments
            assert one.usage.lm_decoded_tokens == other.usage.lm_decoded_tokens


def test_shared_beginnings_save_tokens() -> None:
    path = PathConsistency(branches=20, window=5, confidence=0.6, pattern=DIGIT)
    one, other = (Decoder(reasoner(), None, m) for m in (path, SelfConsistency(n=20, pattern=DIGIT)))
    tokens = [sum(d("x.", max_tokens=40, seed=s).usage.lm_decoded_tokens for s in range(10)) for d in (one, other)]
    assert tokens[0] < 0.85 * tokens[1]


def test_branches_without_a_final_answer_have_no_vote() -> None:
    flat = MockEngine(lambda ids: [0.45, 0.45, 0.1], "ab.", end=".")
    result = Decoder(flat, None, PathConsistency(branches=6, window=2, confidence=0.0, pattern="z"))("a", max_tokens=5, seed=2)
    assert result.text == Decoder(flat, None, Vanilla(chunk=None))("a", max_tokens=5, seed=2).text


@pytest.mark.parametrize("last", [(3, 2, 5), (3, 2), (3, 5), (3,)])
def test_the_last_step_is_always_drawn_anew(last: tuple[int, ...]) -> None:
    """Answers `x.1`, with or without a full stop, with or without an end: only the first step is ever lent."""
    answer = (0, 2, *last)
    fixed = MockEngine(
        lambda ids: [float(i == answer[len(ids) - 1]) for i in range(6)], ["x", "y", ".", "1", "2", "<end>"], end="<end>"
    )
    method = PathConsistency(branches=9, window=1, confidence=0.0, pattern=DIGIT, boundary=Step(delimiter="."))
    usage = Decoder(fixed, None, method)("y", max_tokens=len(answer)).usage
    assert usage.lm_decoded_tokens == len(answer) + 8 * len(last)
