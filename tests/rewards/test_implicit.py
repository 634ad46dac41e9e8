"""An implicit reward is the log-ratio of two models, however it was read."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from helpers.random_models import Pair, language_model, letter_engine, word_tokenizer, words
from transformers import PreTrainedModel

from cards import CARDS, Decoder, FixedLength, Result
from cards.backends.local.engine import TransformersEngine
from cards.engines.mock import MockEngine
from cards.errors import MismatchError, SettingError, UnknownNameError
from cards.events import Prompt, Response
from cards.registry import load_reward
from cards.rewards import ImplicitReward, Minimum
from cards.rewards.implicit import PrefixSums
from cards.sampling import seed_at
from cards.usage import track_usage

IDS = tuple(int(i) for i in np.random.default_rng(5).integers(2, 80, 40))
MODELS = [language_model("llama", seed=seed).double() for seed in (3, 4)]


def engine(model: PreTrainedModel, **options: Any) -> TransformersEngine:
    return TransformersEngine(copy.deepcopy(model), word_tokenizer(), **options)


def implicit(**options: object) -> ImplicitReward:
    return ImplicitReward(*(engine(model, slots=8) for model in MODELS), **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    return engine(MODELS[0]).encode(words(IDS[:10]))


def gains(ids: Sequence[int]) -> list[float]:
    """log pi_tuned - log pi_untuned of each token after the prompt, by full passes."""
    found = []
    for model in MODELS:
        with torch.no_grad():
            logp = model(torch.tensor([[*IDS[:10], *ids]])).logits[0].log_softmax(-1)
        found.append([float(logp[9 + i, t]) for i, t in enumerate(ids)])
    return [a - b for a, b in zip(*found, strict=True)]


@pytest.mark.parametrize("weights", ["sum", "inverse", "mean"])
async def test_it_is_the_weighted_log_ratio_at_every_prefix(prompt: Prompt, weights: str) -> None:
    reward = implicit(beta=0.3, weights=weights)
    ids = IDS[10:22]

    def expected(count: int) -> float:
        own = gains(ids[:count])
        w = {"sum": 1.0, "mean": 1 / max(count, 1)}
        return 0.3 * sum(w.get(weights, 1 / (k + 1)) * gain for k, gain in enumerate(own))

    for counts in [[3], [5, 4, 12], [0, 6, 12]]:  # forwards, backwards and again
        found = await reward.score(prompt, [Response(token_ids=ids[:count]) for count in counts])
        assert found == pytest.approx([expected(count) for count in counts], abs=1e-9)
    reward.forget()
    assert await reward.score(prompt, [Response(token_ids=ids)]) == pytest.approx([expected(12)], abs=1e-9)


async def test_a_text_that_branches_off_a_scored_one_shares_its_sums(prompt: Prompt) -> None:
    reward = implicit()
    branches = [IDS[10:20], (*IDS[10:15], *IDS[30:34]), (*IDS[10:15], 7)]
    for ids in branches:
        assert await reward.score(prompt, [Response(token_ids=ids)]) == pytest.approx([sum(gains(ids))], abs=1e-9)


async def test_both_models_read_only_what_is_new(prompt: Prompt) -> None:
    reward = implicit()
    per_token = sum(e.scheduler.slots.cache.flops for e in (reward.tuned, reward.untuned))  # type: ignore[attr-defined]
    with track_usage() as usage:
        for count, read in [(4, 10 + 3), (9, 10 + 8), (9, 10 + 8), (11, 10 + 10), (6, 10 + 10)]:
            await reward.score(prompt, [Response(token_ids=IDS[10 : 10 + count])])
            assert usage.rm_tokens == 2 * read
    assert usage.flops == per_token * 20
    assert (usage.rm_calls, usage.lm_steps, usage.lm_prefill_tokens, usage.draft_steps) == (5, 0, 0, 0)
    assert usage.rm_cached_tokens == 2 * (13 + 18)


async def test_all_next_tokens_take_one_pass(prompt: Prompt) -> None:
    reward = implicit(weights="inverse")
    at = Response(token_ids=IDS[10:15])
    followers = [Response(token_ids=(*at.token_ids, t)) for t in (5, 9, 70)]
    [expected] = [await implicit(weights="inverse").score(prompt, followers)]
    await reward.score(prompt, [at])
    with track_usage() as usage:
        assert await reward.score_next(prompt, at, followers) == pytest.approx(expected, abs=1e-6)
        assert (usage.rm_calls, usage.rm_tokens) == (3, 2)  # the last token of the answer, in both models
        assert await reward.score(prompt, followers) == pytest.approx(expected, abs=1e-6)
        assert usage.rm_tokens == 2
    bare = [Response(token_ids=(t,)) for t in (5, 9)]
    found = await Minimum([reward]).score_next(prompt, Response(), bare)
    assert found == pytest.approx(await implicit(weights="inverse").score(prompt, bare), abs=1e-6)


async def test_texts_of_another_vocabulary_are_read_in_the_models_own_tokens() -> None:
    reward = implicit()
    text = words(IDS[10:14])
    [found] = await reward.score(Prompt(words(IDS[:10])), [Response(text, (1, 2, 3))])
    assert found == pytest.approx(sum(gains(IDS[10:14])), abs=1e-9)
    prompt, followers = Prompt(words(IDS[:10])), [Response(f"{text} w{t}") for t in (5, 9)]
    found_next = await reward.score_next(prompt, Response(text), followers)
    assert found_next == pytest.approx([sum(gains((*IDS[10:14], t))) for t in (5, 9)], abs=1e-9)


def decoded(reward: ImplicitReward, pair: Pair, forget: bool) -> list[Result]:
    method = CARDS(target=1.0, beta=0.7, boundary=FixedLength(maximum=3), max_rejections=4)
    decoder = Decoder(pair.engine(slots=32), reward, method)

    def settle() -> None:
        if forget:
            decoder.engine.forget()
            reward.forget()

    prompts = [words(IDS[i : i + 6]) for i in range(8)]
    results = []
    for i, text in enumerate(prompts):
        settle()
        results.append(decoder(text, seed=seed_at(0, i), max_tokens=9))
    settle()
    together = decoder.batch(prompts, seed=0, max_tokens=9, progress=False)
    assert [r.token_ids for r in together] == [r.token_ids for r in results]
    return results


@pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
def test_answers_do_not_depend_on_batch_or_cache(llama_float64: Pair) -> None:
    warm, cold = (decoded(implicit(), llama_float64, forget) for forget in (False, True))
    assert [r.token_ids for r in warm] == [r.token_ids for r in cold]
    assert [r.reward for r in warm] == pytest.approx([r.reward for r in cold], abs=1e-9)
    assert len({r.token_ids for r in warm}) == 8


def test_sums_are_found_again_up_to_where_texts_part() -> None:
    sums = PrefixSums()
    assert sums.longest((1, 2), (3, 4)) == (0, 0.0)
    sums.add((1, 2), (3, 4, 5), np.array([1.0, 2.0, 3.0]))
    assert sums.longest((1, 2), (3, 4, 6)) == (2, 2.0)
    assert sums.longest((1, 2, 3), (4, 5)) == (0, 0.0)  # another prompt, though the same tokens
    sums.add((1, 2), (3, 4, 6, 7), np.array([9.0, 10.0]))
    assert sums.longest((1, 2), (3, 4, 6, 7, 8)) == (4, 10.0)
    assert sums.longest((1, 2), (3, 4, 5)) == (3, 3.0)
    sums.add((1, 2), (8, 8, 8), np.array([1.0]))  # what comes before is not known
    assert sums.longest((1, 2), (8, 8, 8)) == (0, 0.0)


def test_sums_are_bounded() -> None:
    sums = PrefixSums(capacity=50)
    for prompt in range(30):
        sums.add((prompt,) * 5, tuple(range(10)), np.arange(10.0))
        assert sums.tokens <= 50
        assert sums.longest((prompt,) * 5, tuple(range(12))) == (10, 9.0)


async def test_rewards_do_not_change_when_sums_are_dropped_in_between(prompt: Prompt) -> None:
    reward = implicit()
    reward.prefix_sums = PrefixSums(capacity=15)
    texts = [Response(token_ids=IDS[10 : 10 + count]) for count in (3, 5, 8, 12, 4, 9)]
    alone = [(await reward.score(prompt, [text]))[0] for text in texts]
    together = await asyncio.gather(*(reward.score(prompt, [text]) for text in texts))
    assert alone == pytest.approx([sum(gains(text.token_ids)) for text in texts], abs=1e-9)
    assert [r for [r] in together] == pytest.approx(alone, abs=1e-9)


async def test_the_mock_will_do() -> None:
    sharp, flat = (MockEngine(lambda ids, p=p: p, "ab") for p in ([0.75, 0.25], [0.5, 0.5]))  # type: ignore[misc]
    reward = ImplicitReward(sharp, flat)
    with track_usage() as usage:
        [found] = await reward.score(sharp.encode("b"), [Response("aab", (0, 0, 1))])
    assert found == pytest.approx(np.log(1.5 * 1.5 * 0.5))
    assert (usage.rm_calls, usage.rm_tokens) == (1, 6)


def test_a_pair_is_named_by_its_models() -> None:
    reward = load_reward("implicit:tiny-aligned,tiny", device="cpu", slots=2)
    assert isinstance(reward, ImplicitReward)
    assert (reward.name, reward.tuned.rows) == ("implicit:tiny-aligned,tiny", 2)
    with pytest.raises(SettingError, match="implicit:TUNED,UNTUNED"):
        load_reward("implicit:tiny")
    with pytest.raises(UnknownNameError, match=r"Unknown kind of reward 'implict'\. Did you mean 'implicit'"):
        load_reward("implict:tiny-aligned,tiny")
    with pytest.raises(UnknownNameError, match="Did you mean 'tiny-aligned'"):
        load_reward("implicit:tiny-alined,tiny")


def test_pairs_and_settings_that_make_no_reward_are_refused() -> None:
    with pytest.raises(MismatchError, match="two models with the same tokenizer"):
        ImplicitReward(engine(MODELS[0]), letter_engine())
    with pytest.raises(SettingError, match="beta must be positive"):
        implicit(beta=0.0)
    with pytest.raises(SettingError, match="weights must be"):
        implicit(weights="none")
