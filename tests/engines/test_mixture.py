"""Mixtures of logits: the law of the rule, boundaries by the mixture's entropy, a cache for each part, exact usage by role."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.composed_laws import proxy_tuned
from helpers.letter_world import END, LETTERS, Ids, next_token, segments
from helpers.mock_models import assert_free
from helpers.proposals import assert_cache_and_company_change_nothing, candidates
from helpers.random_models import Pair, language_model, word_tokenizer, words

from cards import CARDS, Decoder, load_engine
from cards.backends.local.engine import TransformersEngine
from cards.boundaries import Boundary, Entropy, FixedLength, Punctuation, Whole
from cards.engines.base import Ask, Engine
from cards.engines.mixture import Mixture, MixtureEngine, Source
from cards.engines.mock import MockEngine
from cards.engines.speculative import SpeculativeEngine
from cards.errors import MismatchError, PromptTooLongError, SettingError, UnknownNameError
from cards.events import Message, Prompt, Response, Segment
from cards.methods import (
    CFG,
    MOD,
    ROSE,
    BestOfN,
    ContextAwareDecoding,
    ContrastiveDecodingLogits,
    GenARM,
    ProxyTuning,
    SafeDecoding,
    Vanilla,
)
from cards.methods.tokens.driver import LogitsMethod
from cards.placement import Placement
from cards.sampling import Sampling
from cards.testing import check_law, random_model
from cards.testing.laws import Model
from cards.usage import track_usage

PROMPT = (0,)
DRAWS = 1500
TUNED, UNTUNED = random_model(5, (2.0,) * 4), random_model(6, (2.0,) * 4)
MIXED = proxy_tuned(next_token, TUNED, UNTUNED, 0.7)


def engine(model: Model = next_token, **options: Any) -> MockEngine:
    return MockEngine(model, LETTERS, end=LETTERS[END], **options)


def proxy(**options: Any) -> ProxyTuning:
    return ProxyTuning(tuned=engine(TUNED, **options), untuned=engine(UNTUNED), weight=0.7)


def drawn(source: Engine, *, prompt: str = "a", seeds: int = 1, **options: Any) -> list[Segment]:
    asked: dict[str, Any] = {"response": Response(), "max_tokens": 4} | options
    ask = Ask(source.encode(prompt), **asked)

    async def all_of_them() -> list[Segment]:
        return [s for seed in range(seeds) for s in await candidates(source, replace(ask, seed=seed))]

    return asyncio.run(all_of_them())


def counts(source: Engine, **options: Any) -> Counter[Ids]:
    return Counter(s.token_ids for s in drawn(source, n=50, seeds=DRAWS // 50, **options))


def entropy(model: Model, ids: Ids) -> float:
    return float(-sum(p * math.log(p) for p in model(ids) if p > 0))


# Laws.


@pytest.mark.slow
def test_responses_follow_the_law_of_the_rule() -> None:
    found = counts(MixtureEngine(engine(), proxy()))
    check_law(found, segments(4, MIXED, after=PROMPT), wrong=segments(4, next_token, after=PROMPT))


@pytest.mark.slow
def test_segments_end_by_the_entropy_of_the_mixture() -> None:
    def law(model: Model) -> dict[Ids, float]:
        return segments(3, MIXED, after=PROMPT, ends=lambda segment: entropy(model, PROMPT + segment) >= 0.95)

    found = counts(MixtureEngine(engine(), proxy()), boundary=Entropy(1, 3, 0.95), max_tokens=6)
    check_law(found, law(MIXED), wrong=law(next_token))


@pytest.mark.slow
def test_a_draft_over_a_mixture_keeps_the_law_of_the_mixture() -> None:
    source = SpeculativeEngine(MixtureEngine(engine(), proxy()), engine(random_model(9)), 3)
    check_law(counts(source), segments(4, MIXED, after=PROMPT), wrong=segments(4, next_token, after=PROMPT))


@dataclass(frozen=True)
class FirstTokens(Mixture):
    """Another LM for the first tokens: weights that depend on the position."""

    expert: Engine
    count: int

    def sources(self, engine: Engine) -> Sequence[Source]:
        return [Source(self.expert)]

    def mixes(self, position: int) -> bool:
        return position < self.count

    def combine(self, position: int, logits: Any, *others: Any) -> Any:
        assert position < self.count
        return others[0]


@pytest.mark.slow
def test_weights_can_depend_on_the_position_and_parts_without_weight_are_not_read() -> None:
    def two(ids: Ids) -> Sequence[float]:
        law: Sequence[float] = TUNED(ids) if len(ids) - len(PROMPT) < 2 else next_token(ids)
        return law

    expert = engine(TUNED)
    source = MixtureEngine(engine(), FirstTokens(expert, 2))
    check_law(counts(source), segments(4, two, after=PROMPT), wrong=segments(4, next_token, after=PROMPT))
    endless = MixtureEngine(MockEngine(next_token, LETTERS), FirstTokens(MockEngine(TUNED, LETTERS), 2))
    with track_usage() as usage:
        drawn(endless, max_tokens=9)
    assert (usage.lm_steps, usage.draft_steps, usage.lm_decoded_tokens) == (9, 2, 9)


FLAT, SHARP = [0.2, 0.3, 0.3, 0.2], [0.7, 0.1, 0.1, 0.1]


def by_first(ids: Ids) -> list[float]:
    return SHARP if ids[0] == 1 else FLAT


@pytest.mark.parametrize(
    ("rule", "prompt", "other"),
    [
        (CFG(guidance=2.0, negative="b"), "aab", SHARP),
        (CFG(guidance=2.0), "aab", SHARP),  # the last token of the prompt alone
        (CFG(guidance=2.0), "aaa", FLAT),
        (CFG(guidance=1.0, negative="b"), "aab", None),
    ],
    ids=str,
)
def test_guidance_moves_away_from_the_other_prompt(rule: CFG, prompt: str, other: list[float] | None) -> None:
    source = MixtureEngine(engine(by_first), rule)
    logits = asyncio.run(source.logits(source.encode(prompt), Response(token_ids=(2, 2)), 3))
    expected = np.log(FLAT) if other is None else 2 * np.log(FLAT) - np.log(other)
    for row in logits:
        assert row - row[0] == pytest.approx(expected - expected[0], abs=1e-5)


def test_guidance_replaces_the_system_message() -> None:
    class Told(MockEngine):
        def encode(self, prompt: str | Sequence[Message]) -> Prompt:
            told.append(prompt)
            return super().encode(prompt)

    told: list[Any] = []
    source = Told(next_token, LETTERS)
    chat = [Message(role="system", content="a"), Message(role="user", content="b")]
    prompt = source.encode(chat)
    CFG().other_prompt(source, prompt)
    CFG(negative="c").other_prompt(source, prompt)
    ContextAwareDecoding().other_prompt(source, prompt)
    bare, negative, question = told[1:]
    assert bare == question == chat[1:]
    assert negative == [Message(role="system", content="c"), chat[1]]
    assert CFG().other_prompt(source, source.encode(chat[1:])).token_ids == source.encode(chat[1:]).token_ids[-1:]


@pytest.mark.parametrize(("prompt", "messages"), [("aab", False), ("b", True)])
def test_rose_subtracts_the_logits_after_the_reverse_prompt(prompt: str, messages: bool) -> None:
    source = MockEngine(lambda ids: SHARP if 2 in ids else FLAT, LETTERS)  # the reverse prompt has a c
    rule = ROSE(reverse="c", weight=0.7)
    asked: Any = [Message(role="system", content="b"), Message(role="user", content=prompt)] if messages else prompt
    encoded = source.encode(asked)
    other = rule.other_prompt(source, encoded)
    if messages:
        assert other.messages == (Message(role="system", content="c"), Message(role="user", content=prompt))
    else:
        assert other.text == f"c\n\n{prompt}"
    [row] = asyncio.run(MixtureEngine(source, rule).logits(encoded, Response()))
    expected = np.log(FLAT) - 0.7 * np.log(SHARP)
    assert row - row[0] == pytest.approx(expected - expected[0], abs=1e-5)
    assert (ROSE().weight, ROSE().temperature) == (0.5, 0.0)


def test_context_ends_at_the_last_blank_line_of_a_raw_prompt() -> None:
    source = MockEngine(lambda ids: [1 / 5] * 5, "abc\n ")
    rule = ContextAwareDecoding()
    assert rule.other_prompt(source, source.encode("a\n\nb\n\nc")).text == "c"
    for text in ("abc", "a\n\n", "\n\na"):
        prompt = source.encode(text)
        assert rule.other_prompt(source, prompt) == prompt


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_the_context_counts_more_than_the_question_alone(weight: float) -> None:
    source = MockEngine(lambda ids: [*(SHARP if ids[0] == 1 else FLAT), 0.0], [*LETTERS, "\n"])
    mixed = MixtureEngine(source, ContextAwareDecoding(weight=weight))
    [row] = asyncio.run(mixed.logits(source.encode("a\n\nb"), Response()))  # the question alone begins with b
    expected = (1 + weight) * np.log(FLAT) - weight * np.log(SHARP)
    assert row[:4] - row[0] == pytest.approx(expected - expected[0], abs=1e-5)
    assert row[4] == -math.inf


def test_the_presets_are_the_methods() -> None:
    """Plain sampling on the mixture gives the text of the token-level method of the same name."""
    amateur = engine(random_model(9))
    rules: list[LogitsMethod] = [
        GenARM(guides=(engine(TUNED), amateur), weights=(0.5, 1.0)),
        ContrastiveDecodingLogits(amateur=amateur),
        proxy(),
        MOD(others=(engine(TUNED),), weights=(0.3, 0.7)),
        CFG(guidance=3.0, negative="c"),
        ROSE(reverse="c", temperature=0.8),
        SafeDecoding(expert=engine(TUNED), first=5, temperature=0.8),
    ]
    for rule in rules:
        sampling = {name: getattr(rule, name) for name in ("temperature", "top_k", "top_p", "chunk")}
        plain = Decoder(MixtureEngine(engine(), rule), None, Vanilla(**sampling))
        for seed in range(5):
            found = plain("ab", max_tokens=40, seed=seed)
            assert found.segments == Decoder(engine(), None, rule)("ab", max_tokens=40, seed=seed).segments


def test_weights_of_a_product_belong_to_the_lm_first() -> None:
    lm, other = engine(lambda ids: FLAT), engine(lambda ids: SHARP)
    rule = MOD(others=(other,), weights=(0.25, 0.75))
    source = MixtureEngine(lm, rule)
    [row] = asyncio.run(source.logits(source.encode("a"), Response()))
    assert row == pytest.approx(0.25 * np.log(FLAT) + 0.75 * np.log(SHARP), abs=1e-6)
    with pytest.raises(SettingError, match="weights must have 2 numbers"):
        MOD(others=(other,), weights=(1.0,))


# Candidates, usage, and refusals.


def test_candidates_do_not_depend_on_how_many_are_drawn_together() -> None:
    source = MixtureEngine(engine(), proxy())
    together = drawn(source, n=8, max_tokens=10)
    assert len({s.token_ids for s in together}) > 3
    assert together == [drawn(source, first=i, max_tokens=10)[0] for i in range(8)]


async def test_candidates_wait_while_the_caller_does_and_end_when_it_leaves() -> None:
    source = MixtureEngine(engine(), proxy())
    before = asyncio.all_tasks()
    with track_usage() as usage:
        async with aclosing(source.propose(Ask(source.encode("a"), Response(), 60, n=8, seed=1))) as batches:
            assert len(await anext(batches)) < 8
            for _ in range(20):
                await asyncio.sleep(0)
            held = usage.lm_decoded_tokens
            for _ in range(200):
                await asyncio.sleep(0)
            assert usage.lm_decoded_tokens == held
    assert asyncio.all_tasks() == before


def test_other_models_count_as_drafts_and_a_second_prompt_as_the_lm() -> None:
    endless: dict[str, Any] = {"max_tokens": 5}
    lm, one, two = (MockEngine(model, LETTERS) for model in (next_token, TUNED, UNTUNED))
    with track_usage() as usage:
        drawn(MixtureEngine(lm, ProxyTuning(tuned=one, untuned=two)), **endless)
    assert (usage.lm_steps, usage.draft_steps, usage.lm_decoded_tokens, usage.draft_decoded_tokens) == (5, 10, 5, 0)
    with track_usage() as usage:
        drawn(MixtureEngine(lm, CFG(negative="b")), **endless)
    assert (usage.lm_steps, usage.draft_steps, usage.lm_decoded_tokens) == (10, 0, 5)


def test_the_shortest_context_limits_the_response() -> None:
    endless = MockEngine(next_token, LETTERS)
    source = MixtureEngine(endless, GenARM(guides=(MockEngine(TUNED, LETTERS, context=6),)))
    assert [len(s.token_ids) for s in drawn(source, max_tokens=30)] == [5]
    longer = MixtureEngine(MockEngine(next_token, LETTERS, context=8), CFG(negative="bbbb"))
    assert [len(s.token_ids) for s in drawn(longer, max_tokens=30)] == [4]
    with pytest.raises(PromptTooLongError, match="context"):
        source.encode("abcabc")
    with pytest.raises(PromptTooLongError, match="context"):
        Decoder(endless, None, GenARM(guides=(MockEngine(TUNED, LETTERS, context=6),)))("abcabc")


def test_logits_inside_the_prompt_are_refused() -> None:
    source = MixtureEngine(engine(), proxy())
    with pytest.raises(SettingError, match="only after the prompt"):
        asyncio.run(source.logits(source.encode("abc"), Response(token_ids=(0,)), 3))


def test_models_that_do_not_fit_are_refused() -> None:
    with pytest.raises(MismatchError, match="do not share a tokenizer"):
        MixtureEngine(engine(), GenARM(guides=(MockEngine(lambda ids: [0.5, 0.5], "xy"),)))
    blind = engine(TUNED)
    blind.has = frozenset({"segments"})  # type: ignore[misc]
    with pytest.raises(MismatchError, match=r"logits .* which a mixture needs"):
        MixtureEngine(engine(), GenARM(guides=(blind,)))
    with pytest.raises(MismatchError, match=r"logits .* which a mixture needs"):
        MixtureEngine(blind, CFG())


@pytest.mark.parametrize("longer", ["lm", "guide"])
def test_tokens_that_only_one_model_can_read_are_excluded(longer: str) -> None:
    class Padded(MockEngine):
        async def logits(self, prompt: Prompt, response: Response, last: int = 1) -> Any:
            assert max(response.token_ids, default=0) < 4
            return np.pad(await super().logits(prompt, response, last), ((0, 0), (0, 2)), constant_values=9.0)

    lm, guide = (
        (Padded if name == longer else MockEngine)(model, LETTERS, end=LETTERS[END])
        for name, model in (("lm", next_token), ("guide", TUNED))
    )
    assert all(max(s.token_ids) < 4 for s in drawn(MixtureEngine(lm, GenARM(guides=(guide,))), n=20))


# Loading.


@pytest.mark.parametrize(
    ("mix", "error", "message"),
    [
        ("best-of-n", SettingError, "is not a mixture. Mixtures: .*proxy-tuning"),
        ("proxy-tuning:tuned=tiny,temperature=2", SettingError, "temperature is not a setting of the mixture"),
        ("proxi-tuning", UnknownNameError, "Did you mean 'proxy-tuning'"),
        ("proxy-tuning:tune=tiny", UnknownNameError, "Did you mean 'tuned'"),
    ],
)
def test_a_text_that_names_no_mixture_is_refused_before_models_are_loaded(mix: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        Placement(mix=mix)
    with pytest.raises(error, match=message):
        load_engine("no such model", mix=mix)


@pytest.mark.slow
def test_a_mixture_is_an_option_of_the_engine() -> None:
    source = load_engine("tiny", mix="genarm:guides=tiny-draft,tiny-aligned,weights=0.5,1", draft="tiny-draft", slots=4)
    assert isinstance(source, SpeculativeEngine)
    assert isinstance(source.engine, MixtureEngine)
    assert [one.name for one in source.engine.parts] == ["tiny", "tiny-draft", "tiny-aligned"]  # type: ignore[attr-defined]
    assert {one.rows for one in source.engine.parts} == {4}  # type: ignore[attr-defined]
    method = BestOfN(n=2, inner=CARDS(target=0.0))
    assert Decoder(source, "tiny", method)("Hello", max_tokens=8).token_ids
    asyncio.run(source.aclose())


# Real models.


def other(pair: Pair, **options: Any) -> TransformersEngine:
    model: Any = language_model("gpt2", seed=3)
    return TransformersEngine(model.to(torch.float64), pair.tokenizer, slots=8, **options)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair.make("llama", torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["genarm", "cfg"])
@pytest.mark.parametrize("boundary", [Entropy(3, 20, 2.6), FixedLength(maximum=7), Punctuation(marks="5"), Whole()], ids=str)
async def test_with_real_models_cache_and_company_change_nothing(pair: Pair, rule: str, boundary: Boundary) -> None:
    mixture: Mixture = GenARM(guides=(other(pair),)) if rule == "genarm" else CFG(negative=words([5, 6, 7]), guidance=2.0)
    source = MixtureEngine(pair.engine(slots=8), mixture)
    sampling = Sampling(0.8, top_k=30)
    ask = Ask(source.encode(words(range(2, 30))), Response(), 30, boundary, sampling, 11, n=6)
    await assert_cache_and_company_change_nothing(source, ask)
    await source.aclose()


@pytest.mark.slow
async def test_leaving_early_frees_the_rows_of_all_models(pair: Pair) -> None:
    source = MixtureEngine(pair.engine(slots=8), GenARM(guides=(other(pair),)))
    async with aclosing(source.propose(Ask(source.encode(words(range(2, 9))), Response(), 60, n=6))) as batches:
        await anext(batches)
    await source.settle()
    for part in source.parts:
        assert isinstance(part, TransformersEngine)
        await assert_free(part)
    await source.aclose()


@pytest.mark.slow
def test_real_models_that_pad_their_vocabulary_differently_work_together() -> None:
    lm, guide = (
        TransformersEngine(language_model("llama", vocabulary=size, seed=size, spread=0.5), word_tokenizer())
        for size in (90, 80)
    )
    lm.end_ids = frozenset()
    results = Decoder(MixtureEngine(lm, GenARM(guides=(guide,))), None, "vanilla").batch(
        [words([3, 4])] * 4, max_tokens=24, progress=False
    )
    assert max(token for result in results for token in result.token_ids) < 80
