"""The engine's proposals: ordered, stateless to the caller, and booked to the token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.random_models import CONTEXT, Pair, letter_engine, reward_model, word_tokenizer, words

from cards import CARDS, Decoder, Entropy, FixedLength
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.engines.base import Ask
from cards.errors import ModelError, PromptError, SettingError, UnknownNameError, UnreachableTargetWarning
from cards.events import Response, Segment
from cards.methods import BestOfN, Vanilla
from cards.sampling import Sampling
from cards.usage import Usage, track_usage


@pytest.fixture
async def engine(gpt2_float64: Pair) -> AsyncIterator[TransformersEngine]:
    """No end token, so that lengths are known."""
    engine = gpt2_float64.engine(slots=8)
    engine.end_ids = frozenset()
    yield engine
    await engine.aclose()


async def proposals(engine: TransformersEngine, ask: Ask) -> list[Segment]:
    found: list[Segment] = []
    async with aclosing(engine.propose(ask)) as batches:
        async for batch in batches:
            assert batch
            found += batch
    return found


def ask_of(engine: TransformersEngine, **options: Any) -> Ask:
    return Ask(engine.encode(words([5, 6, 7])), Response(), **({"max_tokens": 6, "n": 1} | options))


async def test_the_first_list_comes_without_waiting_for_the_longest(engine: TransformersEngine) -> None:
    ask = ask_of(engine, n=8, boundary=Entropy(1, 6, 3.0), sampling=Sampling(1.2))
    lengths = [len(s.token_ids) for s in await proposals(engine, ask)]
    quick = min(range(8), key=lambda i: lengths[i])
    assert lengths[quick] < max(lengths)
    ask = replace(ask, first=quick)
    async with aclosing(engine.propose(ask)) as batches:
        assert len(await anext(batches)) < len(await proposals(engine, ask))


async def test_other_people_may_run_the_model_meanwhile(gpt2_float64: Pair) -> None:
    """The attention in slots stands aside for passes that are not its own."""
    engine = gpt2_float64.engine(slots=2)
    await Decoder(engine, None, Vanilla()).agenerate("w2 w3", max_tokens=4)
    ids = torch.tensor([[4, 5, 6, 7]])
    with torch.inference_mode():
        torch.testing.assert_close(engine.model(ids).logits, gpt2_float64.lm(ids).logits, rtol=0, atol=1e-10)
    await engine.aclose()


# The books.


async def used(engine: TransformersEngine, method: Any, prompt: str = "w5 w6 w7", **options: Any) -> Usage:
    result = await Decoder(engine, None if isinstance(method, Vanilla) else first_id, method).agenerate(prompt, **options)
    return result.usage


async def first_id(prompt: str, response: str) -> float:
    return float(len(response) % 5)


async def test_books_of_plain_sampling(engine: TransformersEngine) -> None:
    """Three tokens read, eight drawn; the last one drawn is never read."""
    usage = await used(engine, Vanilla(chunk=None), max_tokens=8)
    assert (usage.lm_prefill_tokens, usage.lm_decoded_tokens, usage.lm_wasted_tokens) == (3, 8, 0)
    assert usage.lm_steps == 8
    assert usage.lm_cached_tokens == 3  # found by the row that draws, after the one that read
    assert usage.rounds == 1


async def test_books_of_a_prompt_that_was_just_read(engine: TransformersEngine) -> None:
    await used(engine, Vanilla(chunk=None), max_tokens=8)
    usage = await used(engine, Vanilla(chunk=None), max_tokens=8, seed=1)
    assert (usage.lm_prefill_tokens, usage.lm_cached_tokens, usage.lm_steps) == (0, 3, 7)


async def test_books_of_a_prompt_that_shares_its_beginning(engine: TransformersEngine) -> None:
    await used(engine, Vanilla(chunk=None), max_tokens=2)
    usage = await used(engine, Vanilla(chunk=None), "w5 w6 w8 w9", max_tokens=2)
    assert (usage.lm_prefill_tokens, usage.lm_cached_tokens) == (2, 2 + 4)


async def test_books_of_chunks(engine: TransformersEngine) -> None:
    """At a boundary by length the last token is yet to be read; nothing else is read twice."""
    usage = await used(engine, Vanilla(chunk=4), max_tokens=8)
    assert (usage.lm_prefill_tokens, usage.lm_decoded_tokens) == (3 + 1, 8)
    assert usage.lm_cached_tokens == 3 + 6 + 7
    assert usage.lm_steps == 8
    assert usage.rounds == 2


async def test_books_of_best_of_n(engine: TransformersEngine) -> None:
    usage = await used(engine, BestOfN(n=5), max_tokens=6)
    assert (usage.lm_prefill_tokens, usage.lm_decoded_tokens, usage.lm_wasted_tokens) == (3, 30, 24)
    assert usage.lm_cached_tokens == 5 * 3
    assert usage.lm_steps == 6


async def test_a_boundary_by_entropy_is_read_once(engine: TransformersEngine) -> None:
    """The pass that finds the boundary starts the next segment: over the answer every token is read once."""
    method = CARDS(target=-5.0, boundary=Entropy(1, None, 2.9), width=1, temperature=1.0)
    usage = await used(engine, method, max_tokens=20)
    assert usage.rejected == 0
    assert usage.accepted > 3
    assert (usage.lm_prefill_tokens, usage.lm_decoded_tokens) == (3, 20)
    assert usage.lm_steps == 20


async def test_retries_read_nothing_again(engine: TransformersEngine) -> None:
    """Sixty tokens drawn by twenty candidates of one segment: only the prompt is prefilled."""
    method = CARDS(target=90.0, alpha=1.0, boundary=FixedLength(maximum=3), width=1, max_rejections=19)
    with pytest.warns(UnreachableTargetWarning):
        usage = await used(engine, method, max_tokens=3)
    assert (usage.lm_prefill_tokens, usage.lm_decoded_tokens, usage.lm_wasted_tokens) == (3, 60, 57)
    assert usage.lm_cached_tokens == 20 * 3


async def test_each_request_of_a_batch_pays_for_itself(engine: TransformersEngine) -> None:
    prompts = [words(range(2, 4 + i)) for i in range(6)]
    engine.forget()
    results = await Decoder(engine, None, Vanilla(chunk=None)).abatch(prompts, max_tokens=5)
    for i, result in enumerate(results):
        usage = result.usage
        assert usage.lm_decoded_tokens == 5
        assert usage.lm_prefill_tokens + usage.lm_cached_tokens == 2 * (2 + i)
        assert usage.lm_steps >= 5


@pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
@pytest.mark.parametrize("width", [1, 4, "auto"])
async def test_a_reward_model_that_shares_ids_reads_hardly_more_than_what_is_proposed(width: Any, gpt2_float64: Pair) -> None:
    reward = gpt2_float64.reward(slots=32)
    engine = gpt2_float64.engine(slots=32)
    prompts = [words(range(2 + i, 42 + i)) for i in range(6)]
    method = CARDS(target=1.5, boundary=Entropy(2, 8, 2.9), width=width, temperature=1.0)
    results = await Decoder(engine, reward, method).abatch(prompts, max_tokens=40)
    total = sum((r.usage for r in results), Usage())
    assert total.candidates > 50
    assert total.rm_tokens - 6 * 40 <= 1.1 * total.lm_decoded_tokens
    assert total.rm_cached_tokens > 10 * total.rm_tokens
    await engine.aclose()
    await reward.aclose()


@pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
async def test_the_reward_model_reads_or_finds_every_token_of_every_text(gpt2_float64: Pair) -> None:
    engine, reward = gpt2_float64.engine(slots=8), gpt2_float64.reward(slots=8)
    method = CARDS(target=1.5, boundary=Entropy(2, 8, 2.9), width=1, temperature=1.0)
    result = await Decoder(engine, reward, method).agenerate("w5 w6 w7", max_tokens=20, trace=True)
    texts, at = 3, 3
    for segment in result.segments:
        texts += sum(at + len(s.token_ids) for s in (segment, *segment.rejected))
        at += len(segment.token_ids)
    usage = result.usage
    assert usage.rm_tokens + usage.rm_cached_tokens == texts
    assert usage.rm_tokens <= 3 + 1.1 * usage.lm_decoded_tokens
    assert usage.rm_calls == 1 + usage.candidates
    await engine.aclose()
    await reward.aclose()


# Speed dial.


async def test_width_is_wider_for_rare_acceptance_and_never_beyond_what_is_asked(engine: TransformersEngine) -> None:
    widths = [engine.width(rate, 21) for rate in (0.02, 0.2, 0.9)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > widths[-1] >= 1
    assert engine.width(0.02, 2) <= 2
    assert engine.width(0.02, 21) <= engine.rows


async def test_width_leaves_rows_to_other_requests(engine: TransformersEngine) -> None:
    alone = engine.width(0.05, 21)
    engine.requests = 4
    assert engine.width(0.05, 21) <= engine.rows // 4 <= alone
    engine.requests = 101
    assert engine.width(0.05, 21) == 1
    engine.requests = 0


# What is refused.


async def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers(engine: TransformersEngine) -> None:
    with pytest.raises(PromptError, match=rf"{CONTEXT} tokens.*context.*{CONTEXT}"):
        engine.encode(words([5] * CONTEXT))
    almost = await Decoder(engine, None, Vanilla()).agenerate(words([5] * (CONTEXT - 1)), max_tokens=9)
    assert (len(almost.token_ids), almost.finish_reason) == (1, "length")


@pytest.mark.parametrize(
    ("options", "error"),
    [({"context": CONTEXT + 1}, SettingError), ({"context": 1}, SettingError), ({"slots": 0}, (SettingError, ModelError))],
)
def test_impossible_sizes_are_refused(options: dict[str, Any], error: Any, gpt2_float64: Pair) -> None:
    with pytest.raises(error):
        gpt2_float64.engine(**options)


@pytest.mark.parametrize(("option", "error"), [({"dtype": "float8"}, UnknownNameError), ({"device": "gpu"}, SettingError)])
def test_unknown_devices_and_types_are_refused(option: dict[str, str], error: Any) -> None:
    with pytest.raises(error, match=next(iter(option.values()))):
        TransformersEngine.load("tiny", **option)  # type: ignore[arg-type]


def test_a_saved_model_is_loaded_as_engine_but_not_as_reward(tmp_path: Any, gpt2_float64: Pair) -> None:
    gpt2_float64.lm.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    loaded = TransformersEngine.load(str(tmp_path), device="cpu", dtype="float64", slots=2)
    want = Decoder(gpt2_float64.engine(slots=2), None, Vanilla())("w5 w6", max_tokens=6)
    assert Decoder(loaded, None, Vanilla())("w5 w6", max_tokens=6).token_ids == want.token_ids
    assert loaded.name == str(tmp_path)
    with pytest.raises(ModelError, match="no trained score head"):
        ClassifierReward.load(str(tmp_path), device="cpu")


def test_a_saved_reward_model_scores_as_before(tmp_path: Any) -> None:
    model = reward_model("llama")
    model.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    reward = ClassifierReward.load(str(tmp_path), device="cpu", target=0.5)
    decoder = Decoder(letter_engine(slots=2), reward, BestOfN(n=2))
    assert reward.target == 0.5
    assert decoder("ab", max_tokens=3).reward is not None


async def test_one_of_several_equal_prompts_is_read_for_all(engine: TransformersEngine) -> None:
    prompt = engine.encode(words(list(range(5, 45))))
    with track_usage() as usage:
        ask = Ask(prompt, Response(), 4)
        await asyncio.gather(*(proposals(engine, replace(ask, seed=seed)) for seed in range(6)))
    again = len(prompt.token_ids) - 1 + 5  # the others only ask for the logits after it, which take its last token
    assert usage.lm_prefill_tokens <= again + 1
