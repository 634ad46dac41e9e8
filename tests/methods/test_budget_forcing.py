"""Thinking is extended to its minimum, ended at its maximum, and followed by the answer of any method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from cards import Accepted, Decoder, FixedLength, Proposed
from cards.engines.mock import MockEngine
from cards.errors import MismatchError, SettingError
from cards.grammar import Grammar
from cards.methods import CARDS, BestOfN, BudgetForcing, Vanilla
from cards.methods.base import Method
from cards.rewards import AfterThinking
from cards.testing import MockReward

TOKENS = ["<think>", "</think>", "Wait", "x", "y", "\n", "."]
OPEN, CLOSE, WAIT, X, Y, LINE, END = range(7)


def thinker(length: int, answer: Sequence[float] = (0.6, 0.4)) -> MockEngine:
    """Thinks x for so many tokens after the opening marker or an extension, then answers one x or y."""

    def model(ids: tuple[int, ...]) -> list[float]:
        law = [0.0] * 7
        if CLOSE in ids:
            rest = [t for t in ids[ids.index(CLOSE) + 1 :] if t != LINE]
            if rest:
                law[END] = 1.0
            else:
                law[X], law[Y] = answer
            return law
        start = max((i for i, t in enumerate(ids) if t in (OPEN, WAIT)), default=-1)
        law[X if sum(t == X for t in ids[start + 1 :]) < length else CLOSE] = 1.0
        return law

    return MockEngine(model, TOKENS, end=".")


def run(method: Method, engine: MockEngine, prompt: str = "y", **options: Any) -> Any:
    return Decoder(engine, MockReward(), method)(prompt, **({"max_tokens": 40} | options))


@pytest.mark.parametrize(
    ("settings", "length", "text"),
    [
        ({}, 3, "<think>\nxxx</think>"),
        ({"most": 2}, 3, "<think>\nxx\n</think>\n\n"),
        ({"most": 0}, 3, "<think>\n\n</think>\n\n"),
        ({"least": 3}, 3, "<think>\nxxx</think>"),
        ({"least": 4}, 3, "<think>\nxxxWaitxxx</think>"),
        ({"least": 8}, 3, "<think>\nxxxWaitxxxWaitxxx</think>"),
        ({"least": 8, "extensions": 1}, 3, "<think>\nxxxWaitxxx</think>"),
        ({"least": 5, "most": 5}, 3, "<think>\nxxxWaitx\n</think>\n\n"),
        ({"least": 4, "most": 4}, 3, "<think>\nxxxWait\n</think>\n\n"),
    ],
)
def test_thinking_is_as_long_as_is_asked(settings: dict[str, Any], length: int, text: str) -> None:
    result = run(BudgetForcing(**settings), thinker(length))
    assert result.text in (text + "x", text + "y")
    assert result.finish_reason == "stop"
    assert result.token_ids == (*thinker(length).tokenize(result.text), END)


def test_a_prompt_that_begins_the_thinking_is_continued() -> None:
    result = run(BudgetForcing(most=2), thinker(5), prompt="y<think>\n")
    assert result.text.startswith("xx\n</think>\n\n")


def test_added_texts_are_kept_drafts_and_only_dropped_markers_are_wasted() -> None:
    usage = run(BudgetForcing(least=8), thinker(3)).usage
    assert usage.draft_kept_tokens == 2 + 1 + 1  # the opening marker with its line, and two extensions
    assert usage.lm_decoded_tokens == 3 * 4 + 2  # each thought with its marker, and the answer with its end
    assert usage.lm_wasted_tokens == 2


def test_an_end_of_text_token_ends_the_thinking_as_the_marker_does() -> None:
    def model(ids: tuple[int, ...]) -> list[float]:
        law = [0.0] * 7
        law[X if len(ids) % 3 else END] = 1.0
        return law

    source = MockEngine(model, TOKENS, end=".")
    assert run(BudgetForcing(), source).text == "<think>\n\n</think>\n\nxx"
    assert run(BudgetForcing(least=3), source).text == "<think>\nWaitxx\n</think>\n\nxx"


def test_limits_and_stop_strings_hold_everywhere() -> None:
    for limit in range(1, 12):
        result = run(BudgetForcing(least=9, most=9), thinker(3), max_tokens=limit)
        assert len(result.token_ids) == limit
        assert result.finish_reason == "length"
    stopped = run(BudgetForcing(), thinker(3), stop="xx")
    assert (stopped.text, stopped.finish_reason) == ("<think>\n", "stop")


@pytest.mark.slow
def test_the_answer_follows_the_law_of_the_inner_method() -> None:
    reward = MockReward(lambda text: float(text.endswith("y")), target=1.0)
    for inner, y in ((None, 0.4), (BestOfN(n=2, temperature=1.0), 1 - 0.6**2)):
        method = BudgetForcing(most=2, temperature=1.0, inner=inner)
        results = Decoder(thinker(5), reward, method).batch(["y"] * 600, max_tokens=20, progress=False)
        found = Counter((r.text[-1], r.finish_reason, len(r.segments) > 2) for r in results)
        law = {("x", "stop", True): 1 - y, ("y", "stop", True): y}
        share = found["y", "stop", True] / 600
        assert abs(share - law["y", "stop", True]) < 0.07
        assert abs(share - 0.5) > 0.03
    assert reward.scored
    assert all(text.startswith("<think>\nxx\n</think>\n\n") for text in reward.scored)


def test_the_inner_method_has_its_own_random_numbers_and_events() -> None:
    method = BudgetForcing(most=2, inner=CARDS(target=0.0, boundary=FixedLength(maximum=1)))
    *events, done = Decoder(thinker(5), MockReward(), method).stream("y", max_tokens=20, seed=3)
    kept = [event for event in events if isinstance(event, Accepted)]
    assert [event.position for event in kept] == list(range(len(kept)))
    assert [event.by for event in events if isinstance(event, Proposed)][:3] == ["draft", "lm", "draft"]
    assert done.result.text == "".join(event.segment.text for event in kept)  # type: ignore[union-attr]


@pytest.mark.parametrize("inner", [None, BestOfN(n=3, temperature=1.0), CARDS(target=0.0, boundary=FixedLength(maximum=1))])
@pytest.mark.parametrize("settings", [{"most": 2}, {"least": 8}, {"most": 0}])
def test_a_grammar_applies_to_the_answer_alone(settings: dict[str, Any], inner: Method | None) -> None:
    pytest.importorskip("llguidance")
    grammar = Grammar.regex("(xy|yx)x")  # without it, an answer has one letter
    texts = set()
    for seed in range(8):
        method = BudgetForcing(**settings, temperature=1.0, inner=inner)
        source = MockEngine(writer, TOKENS, end=".")
        result = Decoder(source, MockReward(), method)("y", max_tokens=60, seed=seed, grammar=grammar)
        thinking, marker, answer = result.text.partition("</think>")
        assert thinking.startswith("<think>")
        assert marker
        assert (answer.strip() in ("xyx", "yxx"), result.finish_reason) == (True, "stop")
        assert answer.count("\n") == (0 if "least" in settings else 2)  # of the forced marker
        texts.add(answer.strip())
    assert len(texts) == 2


def writer(ids: tuple[int, ...]) -> list[float]:
    """Think three x at a time, and answer with any token."""
    if CLOSE in ids:
        return [1 / 7] * 7
    start = max((i for i, t in enumerate(ids) if t in (OPEN, WAIT)), default=-1)
    return [float(t == (X if sum(t == X for t in ids[start + 1 :]) < 3 else CLOSE)) for t in range(7)]


def test_settings_and_needs() -> None:
    with pytest.raises(SettingError, match="least must be between 0 and most = 3, got 4"):
        BudgetForcing(least=4, most=3)
    with pytest.raises(SettingError, match="markers"):
        BudgetForcing(closing="")
    assert BudgetForcing(inner=BestOfN()).needed == {"segments", "reward"}
    with pytest.raises(MismatchError, match="has no tokens for '<think>"):
        Decoder(MockEngine(lambda ids: [0.5, 0.5], "ab"), None, BudgetForcing())("a")
    plain = Decoder(thinker(3), None, Vanilla())("y", max_tokens=3)
    assert plain.token_ids


def test_a_reward_of_the_answer_alone_leaves_the_thinking_to_the_method() -> None:
    inner = MockReward(lambda text: float("y" in text))
    method = BudgetForcing(most=2, inner=BestOfN(n=4, temperature=1.0))
    result = Decoder(thinker(5), AfterThinking(inner, opening="<think>", closing="</think>"), method)(
        "y", max_tokens=20, seed=1
    )
    assert result.text.startswith("<think>\nxx\n</think>\n\n")
    assert {text.strip() for text in inner.scored} <= {"x", "y"}
