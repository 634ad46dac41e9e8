"""The loop of the methods that choose every token."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.letter_world import END as LETTER_END
from helpers.letter_world import LETTERS
from helpers.mock_models import assert_free, count_of_b, mock
from helpers.random_models import END, Pair, letter_engine, words
from test_token_methods import (
    CHUNK,
    GREEDY,
    MAX,
    METHODS,
    Make,
    engine_of,
    method_of,
    mocks,
    other_lm,
    other_token,
    reward_of,
)

from cards import Accepted, Decoder, Proposed, Scored
from cards.engines.base import Engine
from cards.engines.mock import MockEngine
from cards.errors import MismatchError, PromptError
from cards.events import Done, Prompt, Response
from cards.methods import (
    ARGS,
    RAD,
    SIA,
    ContrastiveDecoding,
    ContrastiveDecodingLogits,
    ControlledDecoding,
    DeAL,
    GenARM,
    Vanilla,
)
from cards.methods.base import Method, Request

IDENTITIES: list[Make] = [
    lambda lm, other: GenARM(guides=(other,), weights=(0.0,), top_k=3),
    lambda lm, other: ContrastiveDecodingLogits(amateur=other, weight=0.0, plausibility=1e-9, top_k=3),
    lambda lm, other: ARGS(weight=0.0, top_k=3, temperature=0.7),
    lambda lm, other: RAD(weight=0.0, top_k=3, temperature=0.7, target=0.0),
    lambda lm, other: ControlledDecoding(weight=0.0, top_k=3),
    lambda lm, other: SIA(top_k=3, min_entropy=99.0),
    lambda lm, other: DeAL(weight=0.0, top_k=3, temperature=0.7, lookahead=2),
]


@pytest.fixture(scope="module")
def lettered() -> tuple[Engine, Engine]:
    return letter_engine(slots=8, ends=True), letter_engine(slots=4)


@pytest.mark.parametrize("make", IDENTITIES, ids=lambda make: make(mock(), mock()).name)
@pytest.mark.parametrize("chunk", [1, 3, None])
def test_without_guidance_the_answer_is_vanillas_token_for_token(
    make: Make, chunk: int | None, lettered: tuple[Engine, Engine]
) -> None:
    guided = replace(make(*lettered), chunk=chunk)  # type: ignore[type-var]
    ends = set()
    for seed in range(8):
        options: dict[str, Any] = {"seed": seed, "max_tokens": 9, "stop": ["c", "b.f", "fe"]}
        expected = Decoder(lettered[0], None, Vanilla(top_k=3, chunk=chunk))("ab cd", **options)
        result = Decoder(lettered[0], count_of_b, guided)("ab cd", **options)
        assert [(s.text, s.token_ids, s.finish_reason) for s in result.segments] == [
            (s.text, s.token_ids, s.finish_reason) for s in expected.segments
        ]
        ends.add(END in result.token_ids)
    assert len(ends) == 2  # by end of text, and by a stop string


@pytest.mark.parametrize("name", GREEDY)
def test_a_greedy_answer_does_not_depend_on_how_it_is_handed_out(name: str, lettered: tuple[Engine, Engine]) -> None:
    held_back = [letter + "?" for letter in "abcdefgh .\n"]
    for stop in ([], ["ba", "g"], held_back):
        found = set()
        for chunk in (1, 5, None):
            method = replace(METHODS[name][0](*lettered), chunk=chunk)  # type: ignore[type-var]
            result = Decoder(lettered[0], reward_of, method)("ab cd", max_tokens=12, stop=stop)
            found.add((result.text, result.token_ids, result.finish_reason, result.reward))
        assert len(found) == 1


def test_a_step_reads_one_token_in_the_lm_and_one_for_each_candidate_in_the_rm(llama_float64: Pair) -> None:
    k, prompt = 5, list(range(20, 40))
    method = ARGS(top_k=k, chunk=CHUNK)
    result = Decoder(llama_float64.engine(slots=4), llama_float64.reward(slots=8), method)(words(prompt), max_tokens=MAX)
    usage, steps = result.usage, len(result.token_ids)
    assert steps == MAX
    assert (usage.lm_steps, usage.lm_prefill_tokens, usage.lm_decoded_tokens) == (steps, len(prompt), steps)
    assert (usage.rounds, usage.lm_wasted_tokens, usage.candidates) == (steps, 0, len(result.segments))
    assert usage.rm_calls == k * steps + len(result.segments)
    assert usage.rm_tokens == len(prompt) + k * steps + len(result.segments)


def test_a_second_model_has_books_of_its_own(llama_float64: Pair) -> None:
    prompt = list(range(20, 40))
    method = ContrastiveDecoding(amateur=engine_of(other_lm()))
    usage = Decoder(llama_float64.engine(), None, method)(words(prompt), max_tokens=6).usage
    assert (usage.lm_steps, usage.lm_prefill_tokens, usage.lm_decoded_tokens) == (6, len(prompt), 6)
    assert (usage.draft_steps, usage.draft_prefill_tokens, usage.draft_decoded_tokens) == (6, len(prompt), 0)
    assert usage.rm_calls == 0


def test_every_chunk_is_proposed_scored_and_accepted_with_the_reward_of_the_answer_so_far() -> None:
    events = list(Decoder(mock(), count_of_b, ARGS(top_k=2, chunk=3)).stream("ab", max_tokens=8))
    assert [type(e) for e in events] == [Proposed, Scored, Accepted] * 3 + [Done]
    accepted = [e.segment for e in events if isinstance(e, Accepted)]
    text = ""
    for segment in accepted:
        text += segment.text
        assert segment.reward == text.count("b") / 2
    assert [len(s.token_ids) for s in accepted] == [3, 3, 2]
    assert accepted[-1].reward


def test_vocabularies_padded_to_different_lengths_are_cut_to_the_shorter() -> None:
    class Padded(MockEngine):
        async def logits(self, prompt: Prompt, response: Response, last: int = 1) -> Any:
            logits = await super().logits(prompt, response, last)
            return np.pad(logits, ((0, 0), (0, 3)), constant_values=50.0)

    lm, other = mocks()
    padded = Padded(other_token, LETTERS, end=LETTERS[LETTER_END])
    for seed in range(5):
        answers = [Decoder(lm, None, GenARM(guides=(guide,)))("ab", seed=seed, max_tokens=6) for guide in (other, padded)]
        assert answers[0].segments == answers[1].segments


def test_an_answer_is_no_longer_than_all_models_can_read() -> None:
    small = MockEngine(lambda ids: [0.25] * 4, "abc ", context=9)
    result = Decoder(mock(), None, ContrastiveDecoding(amateur=small))("abcab", max_tokens=20)
    assert (len(result.token_ids), result.finish_reason) == (4, "length")
    with pytest.raises(PromptError, match=r"9 tokens.*'mock' is 9"):
        Decoder(mock(), None, ContrastiveDecoding(amateur=small))("abcabcabc")


def test_engines_that_do_not_fit_are_refused() -> None:
    class Textual(MockEngine):
        has = frozenset({"segments"})
        logits = Engine.logits

    textual = Textual(lambda ids: [0.25] * 4, "abc ")
    for method in (ARGS(), GenARM(guides=(mock(),))):
        with pytest.raises(MismatchError, match=r"needs logits.*Methods that work: .*best-of-n"):
            Decoder(textual, count_of_b, method)
    with pytest.raises(MismatchError, match="does not provide logits"):
        Decoder(mock(), None, ContrastiveDecoding(amateur=textual))("ab")
    with pytest.raises(MismatchError, match=r"share a tokenizer.*guides"):
        Decoder(mock(), None, GenARM(guides=(mock(), mocks()[0]), weights=(1.0, 1.0)))


@pytest.mark.parametrize("method", [ARGS(), RAD(), ControlledDecoding(), SIA(), DeAL()], ids=lambda m: m.name)
def test_guided_methods_refuse_to_go_without_a_reward(method: Method) -> None:
    with pytest.raises(MismatchError, match="needs reward"):
        Decoder(mock(), None, method)

    async def first() -> Any:
        return await anext(method.stream(Request(mock().encode("a")), mock(), None))

    with pytest.raises(MismatchError, match="needs a reward"):
        asyncio.run(first())


@pytest.mark.parametrize("length", [{"max_tokens": 20}, {"max_tokens": 9}])
@pytest.mark.parametrize("short", ["lm", "rm"])
def test_lookaheads_stay_within_every_context(llama_float64: Pair, short: str, length: dict[str, int]) -> None:
    lm = llama_float64.engine(slots=4, context=16 if short == "lm" else None)
    rm = llama_float64.reward(context=16 if short == "rm" else None)
    result = Decoder(lm, rm, DeAL(top_k=2, lookahead=4))(words(range(20, 26)), **length)
    assert (len(result.token_ids), result.finish_reason) == (min(10, length["max_tokens"]), "length")


@pytest.mark.parametrize("name", ["deal", "contrastive, logits", "args, greedy"])
async def test_an_answer_that_is_left_frees_its_rows(name: str) -> None:
    lm, other = letter_engine(slots=4), letter_engine(slots=4)
    events = Decoder(lm, count_of_b, method_of(name, lm, other)).astream("ab cd", max_tokens=60)
    async for event in events:
        if isinstance(event, Accepted):
            break
    await events.aclose()
    for engine in (lm, other):
        await assert_free(engine)
        await engine.aclose()
