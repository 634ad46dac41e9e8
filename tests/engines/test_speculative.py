"""Speculative decoding: the target's law, whatever the draft; fewer steps of the target; the same text for the same seed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.letter_world import BY_ENTROPY, END, LETTERS, Ids, Law, entropy, next_token, segments
from helpers.mock_models import assert_free
from helpers.proposals import assert_cache_and_company_change_nothing, candidates
from helpers.random_models import Pair, language_model, word_tokenizer, words

from cards import CARDS, Decoder
from cards.backends.local.engine import TransformersEngine
from cards.boundaries import Boundary, Entropy, FixedLength, Punctuation, Whole
from cards.engines.base import Ask, Engine
from cards.engines.mock import MockEngine
from cards.engines.speculative import SpeculativeEngine
from cards.errors import MismatchError, SettingError
from cards.events import Prompt, Response, Segment
from cards.methods import BestOfN
from cards.sampling import Sampling
from cards.testing import check_law
from cards.usage import track_usage

pytestmark = pytest.mark.slow

DRAWS = 1500
PROMPT = (0,)
Model = Callable[[Ids], Sequence[float]]


def far(ids: Ids) -> list[float]:
    """Sharp, and of another mind than the target: most of it is rejected."""
    return [float(x) for x in np.random.default_rng([7, *ids]).dirichlet([0.4] * 4)]


def near(ids: Ids) -> list[float]:
    return [0.85 * p + 0.15 * q for p, q in zip(next_token(ids), far(ids), strict=True)]


def engine(model: Model, end: int | None = END, **options: Any) -> MockEngine:
    return MockEngine(model, LETTERS, end=None if end is None else LETTERS[end], **options)


def drawn(source: Engine, *, seeds: int = 1, **options: Any) -> list[Segment]:
    asked: dict[str, Any] = {"response": Response(), "max_tokens": 4} | options
    ask = Ask(source.encode("a"), **asked)

    async def all_of_them() -> list[Segment]:
        return [s for seed in range(seeds) for s in await candidates(source, replace(ask, seed=seed))]

    return asyncio.run(all_of_them())


def enumerated(model: Model, sampling: Sampling, limit: int, ends: Callable[[Ids], bool] = lambda segment: False) -> Law:
    """Every segment with its probability, under temperature, top-k and top-p as they are defined."""

    def shaped(ids: Ids) -> list[float]:
        p = [x ** (1 / sampling.temperature) for x in model(ids)]
        falling = sorted(p, reverse=True)[: sampling.top_k]
        reached = np.cumsum(falling) - falling < sampling.top_p * sum(falling)
        least = falling[int(reached.sum()) - 1]
        p = [x if x >= least else 0.0 for x in p]
        return [x / sum(p) for x in p]

    return segments(limit, shaped, after=PROMPT, ends=ends)


@pytest.mark.parametrize(
    ("gamma", "draft", "sampling"),
    [
        (1, far, Sampling(1.4)),
        (2, near, Sampling()),
        (3, far, Sampling(1.0, top_k=2)),
        (5, near, Sampling(0.6, top_k=3)),
        (4, far, Sampling(1.0, top_p=0.8)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_answers_follow_the_targets_law_whatever_the_draft(gamma: int, draft: Model, sampling: Sampling) -> None:
    source = SpeculativeEngine(engine(next_token), engine(draft), gamma)
    found = drawn(source, n=50, seeds=DRAWS // 50, sampling=sampling)
    check_law(Counter(s.token_ids for s in found), enumerated(next_token, sampling, 4), wrong=enumerated(far, sampling, 4))


@pytest.mark.parametrize("draft", [far, near])
def test_segments_end_by_the_targets_uncertainty(draft: Model) -> None:
    source = SpeculativeEngine(engine(next_token), engine(draft), 3)
    found = drawn(source, n=50, seeds=DRAWS // 50, boundary=Entropy(1, 3, 0.85), max_tokens=6)
    law = enumerated(next_token, Sampling(), 3, lambda segment: entropy(PROMPT + segment) >= 0.85)
    never = enumerated(next_token, Sampling(), 3)
    check_law(Counter(s.token_ids for s in found), law, wrong=never)
    cut = [s for s in found if s.entropy is not None]
    assert {len(s.token_ids) for s in cut} == {1, 2}
    assert all(s.entropy == pytest.approx(entropy(PROMPT + s.token_ids), abs=1e-6) for s in cut)


@pytest.mark.parametrize("gamma", [1, 3, 9])
@pytest.mark.parametrize(
    ("boundary", "stop"),
    [(Whole(), ()), (BY_ENTROPY, ()), (FixedLength(maximum=5), ()), (Punctuation(marks="b"), ()), (Whole(), ("ab", "cc"))],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_draft_that_equals_the_target_gives_the_text_of_plain_decoding(
    gamma: int, boundary: Boundary, stop: tuple[str, ...]
) -> None:
    plain = engine(next_token)
    source = SpeculativeEngine(engine(next_token), engine(next_token), gamma)
    asked: dict[str, Any] = {"n": 40, "max_tokens": 12, "boundary": boundary, "stop": stop, "segment": 3}
    found = drawn(source, **asked)
    for ours, theirs in zip(found, drawn(plain, **asked), strict=True):
        assert replace(ours, entropy=None) == replace(theirs, entropy=None)
        assert ours.entropy == pytest.approx(theirs.entropy, abs=1e-6)


@pytest.mark.parametrize("draft", [far, near])
def test_greedy_decoding_is_greedy_decoding_with_any_draft(draft: Model) -> None:
    greedy: dict[str, Any] = {"sampling": Sampling(0.0), "max_tokens": 30, "boundary": FixedLength(maximum=30)}
    endless = engine(next_token, end=None)
    assert drawn(SpeculativeEngine(endless, engine(draft, end=None), 4), **greedy) == drawn(endless, **greedy)


def one_hot(token: int) -> list[float]:
    return [float(i == token) for i in range(4)]


@pytest.mark.parametrize(
    ("draft", "steps", "drafted"),
    [
        (lambda ids: one_hot(0), 3, 3 + 3 + 3),  # always right: every round gives gamma + 1 tokens
        (lambda ids: one_hot(1), 12, 3 * 9 + 2 + 1 + 0),  # never right: every round gives one
        (lambda ids: one_hot(len(ids) % 3 == 0), 4, 3 + 3 + 3 + 2),  # wrong about every third: rounds give three
    ],
    ids=["right", "wrong", "mixed"],
)
def test_steps_are_what_the_rounds_are(draft: Model, steps: int, drafted: int) -> None:
    """gamma 3, twelve tokens: no more is drafted than the answer has room for beside the target's own token."""
    target: Model = lambda ids: one_hot(0)  # noqa: E731
    source = SpeculativeEngine(engine(target, end=None), engine(draft, end=None), 3)
    with track_usage() as usage:
        [segment] = drawn(source, max_tokens=12)
    assert len(segment.token_ids) == usage.lm_decoded_tokens == 12
    assert (usage.lm_steps, usage.draft_decoded_tokens, usage.draft_steps) == (steps, drafted, drafted)


def test_nothing_is_drafted_behind_an_end() -> None:
    source = SpeculativeEngine(engine(lambda ids: one_hot(END)), engine(lambda ids: one_hot(END)), 5)
    with track_usage() as usage:
        [segment] = drawn(source, max_tokens=12)
    assert (segment.token_ids, segment.finish_reason) == ((END,), "stop")
    assert (usage.lm_steps, usage.draft_decoded_tokens, usage.lm_prefill_tokens) == (1, 1, 1)


def test_candidates_do_not_depend_on_how_many_are_drawn_together() -> None:
    source = SpeculativeEngine(engine(next_token), engine(near), 3)
    together = drawn(source, n=8, max_tokens=10)
    assert len({s.token_ids for s in together}) > 3
    assert together == [drawn(source, first=i, max_tokens=10)[0] for i in range(8)]


def test_a_draft_of_a_short_context_leaves_the_rest_to_the_target() -> None:
    same = engine(next_token, end=None)
    source = SpeculativeEngine(same, engine(next_token, end=None, context=6), 3)
    with track_usage() as usage:
        found = drawn(source, max_tokens=12, n=3)
    assert found == drawn(same, max_tokens=12, n=3)
    assert 0 < usage.draft_decoded_tokens <= 3 * 6


async def test_candidates_wait_while_the_caller_does_and_end_when_he_leaves() -> None:
    source = SpeculativeEngine(engine(next_token), engine(near), 1)
    before = asyncio.all_tasks()
    with track_usage() as usage:
        async with aclosing(source.propose(Ask(source.encode("a"), Response(), 60, n=8, seed=1))) as batches:
            first = await anext(batches)
            assert len(first) < 8
            for _ in range(20):
                await asyncio.sleep(0)
            held = usage.lm_decoded_tokens
            for _ in range(200):
                await asyncio.sleep(0)
            assert usage.lm_decoded_tokens == held
            await anext(batches)
            assert usage.lm_decoded_tokens > held
    assert asyncio.all_tasks() == before


async def test_a_failing_model_fails_the_proposal() -> None:
    def broken(ids: Ids) -> list[float]:
        raise RuntimeError("out of order")

    source = SpeculativeEngine(engine(broken), engine(far), 2)
    with pytest.raises(RuntimeError, match="out of order"):
        await candidates(source, Ask(Prompt("?"), Response(token_ids=(0,)), 5, n=3))


@pytest.mark.parametrize("longer", ["target", "draft"])
def test_models_that_pad_their_vocabulary_differently_follow_the_law(longer: str) -> None:
    class Padded(MockEngine):
        async def logits(self, prompt: Prompt, response: Response, last: int = 1) -> Any:
            return np.pad(await super().logits(prompt, response, last), ((0, 0), (0, 2)), constant_values=-1e9)

    models = {"target": next_token, "draft": far}
    pair = {
        name: (Padded if name == longer else MockEngine)(model, LETTERS, end=LETTERS[END]) for name, model in models.items()
    }
    found = drawn(SpeculativeEngine(pair["target"], pair["draft"], 2), n=50, seeds=DRAWS // 50)
    sampling = Sampling()
    check_law(Counter(s.token_ids for s in found), enumerated(next_token, sampling, 4), wrong=enumerated(far, sampling, 4))


@pytest.mark.parametrize(("target", "draft"), [(90, 80), (80, 90)])
def test_real_models_that_pad_their_vocabulary_differently_work_together(target: int, draft: int) -> None:
    """Also if they draw ids of the padding, which the other model cannot read."""
    lm, small = (
        TransformersEngine(language_model("llama", vocabulary=size, seed=size, spread=0.5), word_tokenizer())
        for size in (target, draft)
    )
    lm.end_ids = frozenset()
    source = SpeculativeEngine(lm, small, 3)
    found = Decoder(source, None, "vanilla").batch([words([3, 4])] * 6, max_tokens=24, progress=False)
    ids = [token for result in found for token in result.token_ids]
    assert len(ids) == 6 * 24
    assert max(ids) < target
    assert (max(ids) >= draft) is (target > draft)


def test_models_that_do_not_fit_are_refused() -> None:
    target = engine(next_token)
    with pytest.raises(MismatchError, match="do not share a tokenizer"):
        SpeculativeEngine(target, MockEngine(lambda ids: [0.5, 0.5], "xy"))
    with pytest.raises(SettingError, match="gamma"):
        SpeculativeEngine(target, engine(far), 0)
    blind = engine(far)
    blind.has = frozenset({"segments"})  # type: ignore[misc]
    with pytest.raises(MismatchError, match="does not provide logits"):
        SpeculativeEngine(target, blind)


def test_any_method_works_over_it() -> None:
    async def count_of_b(prompt: str, response: str) -> float:
        return response.count("b")

    source = SpeculativeEngine(engine(next_token), engine(next_token), 3)
    for method in (BestOfN(n=5), CARDS(target=1.0, width=2, boundary=FixedLength(maximum=3))):
        ours, plain = (Decoder(e, count_of_b, method)("a", max_tokens=12, seed=4) for e in (source, engine(next_token)))
        assert ours.segments == plain.segments
        assert ours.usage.lm_wasted_tokens == plain.usage.lm_wasted_tokens
    assert source.requests == source.engine.requests == 0


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair.make(request.param, torch.float64)


def small_draft(pair: Pair, seed: int) -> TransformersEngine:
    model: Any = language_model("gpt2", seed=seed)
    return TransformersEngine(model.to(torch.float64), pair.tokenizer, slots=8)


ASK = {"sampling": Sampling(0.8, top_k=30), "boundary": Entropy(3, 20, 2.6), "n": 6, "seed": 11}


async def test_with_real_models_cache_and_company_change_nothing(pair: Pair) -> None:
    source = SpeculativeEngine(pair.engine(slots=8), small_draft(pair, 3), 3)
    ask = Ask(source.encode(words(range(2, 30))), Response(), 40, **ASK)  # type: ignore[arg-type]
    await assert_cache_and_company_change_nothing(source, ask)
    await source.aclose()


async def test_with_real_models_an_equal_draft_gives_plain_text_in_fewer_steps(pair: Pair) -> None:
    plain, target, draft = (pair.engine(slots=8) for _ in range(3))
    source = SpeculativeEngine(target, draft, 3)
    ask = Ask(source.encode(words(range(2, 30))), Response(), 41, sampling=Sampling(0.8), seed=4)
    with track_usage() as usage:
        [found] = await candidates(source, ask)
    assert [replace(found, entropy=None)] == await candidates(plain, ask)
    assert usage.lm_steps == -(-len(found.token_ids) // 4)
    assert usage.lm_decoded_tokens == len(found.token_ids)
    assert usage.draft_prefill_tokens == usage.lm_prefill_tokens == 28
    for e in (plain, source):
        await e.aclose()


async def test_a_step_counts_once_for_a_request_however_many_of_its_rows_it_served(llama_float32: Pair) -> None:
    engine = llama_float32.engine(slots=8)
    prompt = engine.encode(words(range(2, 7)))
    with track_usage() as usage:
        tasks = [asyncio.create_task(engine.logits(prompt, Response(token_ids=(i,)))) for i in range(2, 6)]
        with engine.scheduler.worker.condition:  # the worker waits until all have asked
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
    assert (usage.lm_steps, usage.lm_prefill_tokens) == (1, 4 * 5)
    await engine.aclose()


async def test_leaving_early_frees_the_rows_of_both_models(llama_float32: Pair) -> None:
    source = SpeculativeEngine(llama_float32.engine(slots=8), small_draft(llama_float32, 3), 3)
    async with aclosing(source.propose(Ask(source.encode(words(range(2, 9))), Response(), 60, n=6))) as batches:
        await anext(batches)
    await source.settle()
    for e in (source.engine, source.draft):
        assert isinstance(e, TransformersEngine)
        await assert_free(e)
    await source.aclose()


async def test_segments_end_where_the_target_cannot_end_them_itself() -> None:
    """Boundaries read the target's logits, so the limits of its proposals do not matter."""

    class Limited(MockEngine):
        def check_boundary(self, boundary: Boundary) -> None:
            raise MismatchError("not this rule")

    def chances(ids: tuple[int, ...]) -> list[float]:
        return [0.0, 0.9, 0.1] if len(ids) % 3 else [0.0, 0.5, 0.5]

    engines = [kind(chances, ["</s>", "a", "b"], end="</s>") for kind in (Limited, MockEngine, MockEngine)]
    engine, plain = SpeculativeEngine(engines[0], engines[1]), engines[2]
    ask = Ask(plain.encode("a"), Response(), 8, Entropy(threshold=0.5))
    engine.check_boundary(ask.boundary)
    for one in (engine, plain):
        async with aclosing(one.propose(ask)) as batches:
            [[segment]] = [batch async for batch in batches]
        assert len(segment.token_ids) < 8
    assert engine.rows_in_use == engines[0].rows_in_use
