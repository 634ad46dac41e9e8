"""Drafts copied from the text: the law of the target, the same text at temperature 0, and fewer steps where text repeats."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from helpers.letter_world import BY_ENTROPY, END, LETTERS, Ids, engine, entropy, next_token, segments
from helpers.proposals import candidates
from helpers.random_models import Pair, words

from cards import CARDS, Decoder, load_engine
from cards.boundaries import Boundary, Entropy, FixedLength
from cards.engines.base import Ask, Engine
from cards.engines.exclusions import Exclusions
from cards.engines.mock import MockEngine
from cards.engines.prompt_lookup import PromptLookupEngine, continuation
from cards.errors import MismatchError, SettingError
from cards.events import Response, Segment
from cards.grammar import Grammar
from cards.methods import Vanilla
from cards.placement import Placement
from cards.sampling import Sampling
from cards.testing import MockReward, check_law
from cards.testing.laws import normalised
from cards.usage import track_usage

PROMPT = (0, 1, 0)


def drawn(source: Engine, *, seeds: int = 1, **options: Any) -> list[Segment]:
    asked: dict[str, Any] = {"response": Response(), "max_tokens": 4} | options
    ask = Ask(source.encode("aba"), **asked)

    async def all_of_them() -> list[Segment]:
        return [s for seed in range(seeds) for s in await candidates(source, replace(ask, seed=seed))]

    return asyncio.run(all_of_them())


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [1, 3])
def test_responses_follow_the_law_of_the_target(gamma: int) -> None:
    source = PromptLookupEngine(engine(), gamma, 2)
    with track_usage() as usage:
        found = Counter(s.token_ids for s in drawn(source, n=50, seeds=30))
    check_law(found, segments(4, after=PROMPT), wrong=segments(4, lambda ids: next_token(ids[1:]), after=PROMPT))
    assert usage.draft_decoded_tokens > 500
    assert usage.draft_steps == usage.draft_prefill_tokens == 0
    assert usage.lm_steps < usage.lm_decoded_tokens


@pytest.mark.slow
def test_segments_end_by_the_entropy_of_the_target() -> None:
    found = Counter(s.token_ids for s in drawn(PromptLookupEngine(engine()), n=50, seeds=30, boundary=BY_ENTROPY, max_tokens=6))
    law = segments(3, after=PROMPT, ends=lambda segment: entropy(PROMPT + segment) >= 1.1)
    check_law(found, law, wrong=segments(3, after=PROMPT))


def test_greedy_text_that_repeats_takes_fewer_steps() -> None:
    def repeating(ids: Ids) -> list[float]:
        return [0.9 if token == len(ids) % 3 else 0.1 / 3 for token in range(4)]

    plain, faster = MockEngine(repeating, LETTERS), PromptLookupEngine(MockEngine(repeating, LETTERS), gamma=5)
    usages = []
    for source in (plain, faster):
        result = Decoder(source, None, Vanilla(temperature=0.0, chunk=None))("abcabcabc", max_tokens=24)
        assert result.text == "abc" * 8
        usages.append(result.usage)
    assert [usage.lm_steps for usage in usages] == [24, 4]
    assert usages[1].draft_decoded_tokens >= 20


def test_the_latest_match_of_the_longest_end_with_enough_tokens_is_continued() -> None:
    text = [1, 2, 3, 9, 2, 3, 7, 3, 5, 2, 3]
    assert continuation(text, 3, 2) == [7, 3]  # after 2, 3, not after the later 3 alone
    assert continuation(text, 1, 2) == [5, 2]
    assert continuation(text, 2, 9) == [9, 2, 3, 7, 3, 5, 2, 3]  # nothing has 9 tokens after it
    assert continuation([1, 2, 3], 3, 4) == []
    assert continuation([4, 4, 4], 3, 2) == [4]
    assert continuation([4], 3, 2) == continuation([], 3, 2) == continuation(text, 3, 0) == []


def test_nothing_is_drafted_beyond_an_end_or_the_limit() -> None:
    def ending(ids: Ids) -> list[float]:
        return [0.05, 0.05, 0.05, 0.85] if len(ids) > 4 else [0.9, 0.04, 0.03, 0.03]

    source = PromptLookupEngine(MockEngine(ending, LETTERS, end=LETTERS[END]), gamma=8)
    for limit in (1, 2, 6):
        for segment in drawn(source, n=6, max_tokens=limit):
            assert len(segment.token_ids) <= limit
            assert END not in segment.token_ids[:-1]


def test_excluded_tokens_are_never_copied() -> None:
    target = engine()
    target.exclusions = Exclusions(always=(1,))
    assert all(1 not in segment.token_ids for segment in drawn(PromptLookupEngine(target), n=20, max_tokens=8))


def test_names() -> None:
    assert PromptLookupEngine.named("ngram:5", engine(), 7).longest == 5
    assert PromptLookupEngine.named("ngram", engine(), 7).gamma == 7
    for name, message in {"ngram:x": "needs a number of tokens", "ngram:": "needs a number", "ngram:0": "longest"}.items():
        with pytest.raises(SettingError, match=message):
            PromptLookupEngine.named(name, engine(), 4)
    blind = engine()
    blind.has = frozenset({"segments"})  # type: ignore[misc]
    with pytest.raises(MismatchError, match="logits"):
        PromptLookupEngine(blind)


@pytest.mark.slow
def test_it_is_an_option_of_the_engine_and_no_model_to_check() -> None:
    source = load_engine("tiny", draft="ngram:2", gamma=3)
    assert isinstance(source, PromptLookupEngine)
    assert (source.longest, source.gamma) == (2, 3)
    assert [model.name for model in source.parts] == ["tiny"]  # type: ignore[attr-defined]
    placement = Placement(draft="ngram")
    placement.check({"--model": "tiny"})
    assert isinstance(placement.load_engine("tiny"), PromptLookupEngine)
    mixed = load_engine("tiny", draft="ngram", mix="cfg:negative=no")
    assert Decoder(mixed, MockReward(), CARDS(target=0.0))("Hello", max_tokens=6).token_ids


@pytest.mark.slow
@pytest.mark.parametrize("boundary", [FixedLength(maximum=7), Entropy(3, 20, 2.6)], ids=str)
async def test_with_a_real_model_company_changes_nothing(llama_float64: Pair, boundary: Boundary) -> None:
    source = PromptLookupEngine(llama_float64.engine(slots=8), gamma=3)
    ask = Ask(source.encode(words([5, 6, 7] * 6)), Response(), 30, boundary, Sampling(0.5, top_k=30), 11, n=5)
    together = await candidates(source, ask)
    alone = [s for i in range(5) for s in await candidates(source, replace(ask, first=i, n=1))]
    assert [s.token_ids for s in together] == [s.token_ids for s in alone]
    await source.aclose()


@pytest.mark.slow
def test_a_grammar_keeps_its_law_and_ends_the_draft() -> None:
    pytest.importorskip("llguidance")
    texts = ["".join(parts) for parts in product(("ab", "ba", "ca"), repeat=2)]

    def law(grammar: bool) -> dict[str, float]:
        """Each token among those that the grammar allows, or (wrong) all texts by their probability."""
        found = {}
        for text in texts:
            ids, p = tuple(LETTERS.index(c) for c in text), 1.0
            for t, token in enumerate(ids):
                allowed = {other[t] for other in texts if other[:t] == text[:t]} if grammar else set(LETTERS)
                q = next_token(PROMPT + ids[:t])
                p *= q[token] / sum(q[LETTERS.index(c)] for c in allowed)
            found[text] = p
        return normalised(found)

    decoder = Decoder(PromptLookupEngine(engine(), gamma=4), None, Vanilla(temperature=1.0, top_k=None))
    results = decoder.batch(["aba"] * 900, max_tokens=8, grammar=Grammar.regex("(ab|ba|ca){2}"), progress=False)
    assert {r.finish_reason for r in results} == {"stop"}
    assert sum(r.usage.draft_decoded_tokens for r in results) > 300
    check_law(Counter(r.text for r in results), law(True), wrong=law(False))
