"""The ends of responses: end token, length, stop string, deadline."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.mock_models import CARDS_IN_THREES, Hangs, assert_free, count_of_b, mock
from helpers.random_models import PIECES, letter_engine

from cards import CARDS, Accepted, Decoder, FixedLength
from cards.backends.local.engine import TransformersEngine
from cards.engines.base import Engine
from cards.engines.mock import MockEngine
from cards.errors import PromptError
from cards.methods import Vanilla
from cards.rewards import FunctionReward


def test_an_answer_ends_at_the_end_token_which_reads_as_nothing() -> None:
    result = Decoder(mock(end="c"), None, Vanilla(temperature=1.0))("a", max_tokens=200)
    assert result.finish_reason == "stop"
    assert result.token_ids[-1] == 2
    assert "c" not in result.text
    assert len(result.text) == len(result.token_ids) - 1


def test_the_context_of_the_engine_bounds_the_answer() -> None:
    result = Decoder(mock(context=16), None, Vanilla())("abcab", max_tokens=100)
    assert len(result.token_ids) == 11
    assert result.finish_reason == "length"


def test_the_context_of_the_reward_bounds_answer_and_prompt() -> None:
    reward = FunctionReward(count_of_b, target=0.0)
    reward.context = 8
    decoder = Decoder(mock(), reward, CARDS_IN_THREES)
    assert len(decoder("abcab", max_tokens=100).token_ids) == 3
    with pytest.raises(PromptError, match="8 tokens"):
        decoder("abcabcab")
    assert len(Decoder(mock(), reward, Vanilla())("abcabcab", max_tokens=5).token_ids) == 5


STREAMING = [Vanilla(temperature=1.0, chunk=1), Vanilla(temperature=1.0, chunk=2), Vanilla(temperature=1.0, chunk=7)]


@pytest.mark.parametrize(
    "method",
    [*STREAMING, Vanilla(temperature=1.0, chunk=None), CARDS_IN_THREES],
    ids=lambda m: f"{m.name} {getattr(m, 'chunk', '')}",
)
@pytest.mark.parametrize("real", [True, False], ids=["transformers", "mock"])
async def test_an_answer_ends_before_the_first_stop_string_wherever_its_parts_lie(
    method: Any, real: bool, letters: TransformersEngine
) -> None:
    """Every piece of up to four letters of an answer is tried: they lie in one token, across tokens and across segments."""
    engine: Engine = letters if real else mock()
    decoder = Decoder(engine, count_of_b, method)
    whole = (await decoder.agenerate("ab", max_tokens=14, seed=1)).text
    assert len(whole) >= 14
    for length in (1, 2, 4):
        for at in range(0, len(whole) - length, 2):
            stop = whole[at : at + length]
            result = await decoder.agenerate("ab", max_tokens=14, seed=1, stop=stop)
            if method is not CARDS_IN_THREES:  # where rewards see the text, a stop string changes what is accepted
                assert result.text == whole[: whole.find(stop)]
                assert result.finish_reason == "stop"
            assert stop not in result.text


@pytest.mark.parametrize("method", STREAMING, ids=lambda m: f"chunk {m.chunk}")
async def test_the_first_of_several_stop_strings_counts(method: Any, letters: TransformersEngine) -> None:
    decoder = Decoder(letters, None, method)
    whole = (await decoder.agenerate("ab", max_tokens=14, seed=2)).text
    stops = (whole[9:12], whole[5:9], "no such text")
    result = await decoder.agenerate("ab", max_tokens=14, seed=2, stop=stops)
    assert result.text == whole[: min(at for s in stops if (at := whole.find(s)) >= 0)]


@pytest.mark.parametrize("method", STREAMING, ids=lambda m: f"chunk {m.chunk}")
@pytest.mark.parametrize("real", [True, False], ids=["transformers", "mock"])
async def test_only_text_that_may_begin_a_stop_string_is_held_back(
    method: Any, real: bool, letters: TransformersEngine
) -> None:
    engine: Engine = letters if real else mock()
    decoder = Decoder(engine, None, method)
    whole = (await decoder.agenerate("ab", max_tokens=14, seed=1)).text
    held_back = 0
    for at in range(2, len(whole) - 3, 3):
        for stop in (whole[at : at + 3], whole[at : at + 2] + "~", whole[-2:] + "~"):
            shown, drawn = "", ""
            end = whole.find(stop) if stop in whole else len(whole)
            async for event in decoder.astream("ab", max_tokens=14, seed=1, stop=stop):
                if isinstance(event, Accepted):
                    shown += event.segment.text
                    drawn += "".join(PIECES[t] if real else "abc "[t] for t in event.segment.token_ids)
                    if event.segment.finish_reason is None:
                        held = max(n for n in range(len(stop)) if drawn.endswith(stop[:n]))
                        assert shown == drawn[: len(drawn) - held]
                        held_back += held > 0
            assert shown == whole[:end]
    assert held_back > 0


async def test_tokens_of_a_stopped_answer_are_those_its_text_needs(letters: TransformersEngine) -> None:
    """Where a stop string lies in one token: that token counts if text of the answer comes before it."""
    decoder = Decoder(letters, None, Vanilla(temperature=1.0, chunk=None))
    whole = await decoder.agenerate("ab", max_tokens=20, seed=1)
    for at in range(len(whole.text)):
        result = await decoder.agenerate("ab", max_tokens=20, seed=1, stop=whole.text[at])
        assert result.token_ids == whole.token_ids[: len(result.token_ids)]
        pieces = [PIECES[t] for t in result.token_ids]
        assert "".join(pieces).startswith(result.text)
        assert len("".join(pieces[:-1])) < len(result.text) or not pieces


async def test_a_deadline_gives_the_answer_so_far() -> None:
    engine = letter_engine(slots=4)
    method = CARDS(boundary=FixedLength(maximum=2), width=1)
    full = await Decoder(engine, FunctionReward(lambda p, r: 9.0, target=0.0), method).agenerate("ab", max_tokens=20)
    result = await Decoder(engine, Hangs(after=4), method).agenerate("ab", max_tokens=20, deadline=1.0)
    assert result.finish_reason == "deadline"
    assert len(result.text) < len(full.text)
    assert full.text.startswith(result.text)
    assert result.usage.lm_wasted_tokens == result.usage.lm_decoded_tokens - len(result.token_ids)
    await assert_free(engine)
    await engine.aclose()


async def test_a_deadline_before_the_first_segment_gives_an_empty_answer() -> None:
    result = await Decoder(mock(), Hangs(after=0), CARDS_IN_THREES).agenerate("a", deadline=0.05)
    assert (result.text, result.segments, result.reward, result.finish_reason) == ("", (), None, "deadline")


async def test_a_deadline_gives_the_text_that_a_stop_string_held_back() -> None:
    engine = MockEngine(lambda ids: [float(len(ids) % 3 == i) for i in range(3)], "abc")
    result = await Decoder(engine, Hangs(after=4), CARDS_IN_THREES).agenerate("a", max_tokens=20, deadline=1.0, stop="aQ")
    assert result.finish_reason == "deadline"
    assert result.text == "".join(segment.text for segment in result.segments) == "bca" * (len(result.token_ids) // 3) != ""


def test_a_deadline_that_is_not_reached_changes_nothing() -> None:
    decoder = Decoder(mock(), count_of_b, CARDS_IN_THREES)
    assert decoder("a", max_tokens=9, deadline=1000).segments == decoder("a", max_tokens=9).segments
