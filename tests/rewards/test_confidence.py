"""Confidence is what the formulas say of the LM's distributions, and is computed only for tokens that are new."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import numpy as np
import pytest
from helpers.letter_world import LETTERS, Ids, next_token
from helpers.random_models import Pair, words

from cards import Decoder, Prompt, Response
from cards.engines.exclusions import Exclusions
from cards.engines.mock import MockEngine
from cards.errors import MismatchError, SettingError
from cards.methods import BestOfN, SelfCertainty
from cards.methods.responses.self_consistency import final_answer
from cards.registry import load_reward
from cards.rewards import ConfidenceReward, WeightedSum
from cards.testing import random_engine

PROMPT = (0, 1)


def engine() -> MockEngine:
    return MockEngine(next_token, LETTERS)


def scored(reward: ConfidenceReward, *responses: Ids) -> list[float]:
    prompt = Prompt("ab", PROMPT, vocabulary=reward.model.vocabulary)
    texts = [Response("".join(LETTERS[t] for t in ids), ids) for ids in responses]
    return asyncio.run(reward.score(prompt, texts))


def laws(ids: Ids) -> list[Any]:
    return [np.array(next_token(PROMPT + ids[:t])) for t in range(len(ids))]


def of_tokens(ids: Ids, top: int | None) -> list[float]:
    """Confidences by the formulas; top None is self-certainty."""
    if top is None:
        return [float(sum(np.log(0.25 / p) * 0.25)) for p in laws(ids)]
    return [-float(np.mean(np.log(sorted(p)[-top:]))) for p in laws(ids)]


IDS = (2, 1, 0, 0, 3, 1, 2)


@pytest.mark.parametrize("top", [1, 2, 4])
def test_the_measures_are_those_of_the_formulas(top: int) -> None:
    values = of_tokens(IDS, top)
    expected = {
        "self-certainty": np.mean(of_tokens(IDS, None)),
        "mean": np.mean(values),
        "lowest-group": min(np.mean(values[i : i + 3]) for i in range(5)),
        "tail": np.mean(values[-3:]),
    }
    for measure, wanted in expected.items():
        reward = ConfidenceReward(engine(), measure=measure, top=top, window=3)  # type: ignore[arg-type]
        assert scored(reward, IDS) == pytest.approx([wanted], abs=1e-5)
    shorter = ConfidenceReward(engine(), measure="lowest-group", top=top, window=99)
    assert scored(shorter, IDS) == pytest.approx([np.mean(values)], abs=1e-5)
    assert scored(ConfidenceReward(engine(), top=50), ()) == [0.0]


def test_incomplete_responses_and_their_continuations_are_read_once() -> None:
    source = engine()
    reward = ConfidenceReward(source, measure="lowest-group", window=2, top=3)
    alone = [scored(ConfidenceReward(engine(), measure="lowest-group", window=2, top=3), IDS[:n])[0] for n in range(8)]
    reads: list[int] = []
    plain = source._last_logits

    async def counted(ids: tuple[int, ...], last: int) -> Any:
        reads.append(last)
        return await plain(ids, last)

    source._last_logits = counted  # type: ignore[method-assign]
    assert [scored(reward, IDS[:n])[0] for n in (3, 7)] == pytest.approx([alone[3], alone[7]], abs=1e-9)
    assert reads == [3, 4]
    assert scored(reward, IDS[:5], IDS) == pytest.approx([alone[5], alone[7]], abs=1e-9)
    assert reads == [3, 4]
    reward.forget()
    scored(reward, IDS)
    assert reads == [3, 4, 7]


def test_long_responses_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scored(ConfidenceReward(engine()), IDS)
    monkeypatch.setattr("cards.engines.reading.TOKENS", 3)
    assert scored(ConfidenceReward(engine()), IDS) == pytest.approx(whole, abs=1e-9)


def test_excluded_tokens_count_in_the_distribution() -> None:
    source = engine()
    source.exclusions = Exclusions(always=(0,))
    assert scored(ConfidenceReward(source), IDS) == scored(ConfidenceReward(engine()), IDS)


def test_settings_and_names() -> None:
    with pytest.raises(SettingError, match="measure must be one of self-certainty"):
        ConfidenceReward(engine(), measure="entropy")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="window must be at least 1"):
        ConfidenceReward(engine(), window=0)
    blind = engine()
    blind.has = frozenset({"segments"})  # type: ignore[misc]
    with pytest.raises(MismatchError, match="does not provide logits"):
        ConfidenceReward(blind)


@pytest.mark.slow
def test_a_confidence_is_loaded_by_name() -> None:
    reward = load_reward("confidence:tiny?measure=tail&window=8")
    assert isinstance(reward, ConfidenceReward)
    assert (reward.measure, reward.window, reward.name) == ("tail", 8, "confidence:tiny")


# Self-certainty as a choice.


def certainties(texts: list[str]) -> list[float]:
    source = random_engine()
    reward = ConfidenceReward(source)
    prompt = source.encode("ab")
    return asyncio.run(reward.score(prompt, [Response(t, source.tokenize(t)) for t in texts]))


@pytest.mark.parametrize("power", [None, 0.0, 0.7, 1.5, 60.0])
def test_the_choice_is_that_of_the_formula(power: float | None) -> None:
    method = SelfCertainty(n=6, power=power, pattern="[abc]")
    for seed in range(12):
        result = Decoder(MockEngine(next_token, LETTERS), None, method)("ab", max_tokens=5, seed=seed, trace=True)
        [segment] = result.segments
        everything = [segment, *segment.rejected]
        rewards = [one.reward or 0.0 for one in everything]
        ranked = sorted(range(6), key=lambda i: -rewards[i])
        if power is None:
            assert ranked[0] == 0
            continue
        votes: dict[str | None, float] = {}
        for place, i in enumerate(ranked):
            final = final_answer(everything[i].text, "[abc]")
            votes[final] = votes.get(final, 0.0) + (6 - place) ** power
        own = final_answer(segment.text, "[abc]")
        assert votes[own] == pytest.approx(max(votes.values()))
        assert segment.reward == max(
            r for r, one in zip(rewards, everything, strict=True) if final_answer(one.text, "[abc]") == own
        )


def test_the_rewards_of_segments_are_the_certainty_and_are_on_the_books() -> None:
    result = Decoder(MockEngine(next_token, LETTERS), None, SelfCertainty(n=3))("ab", max_tokens=4, seed=1)
    ids = result.token_ids
    found = float(np.mean([np.mean(np.log(0.25 / np.array(next_token((0, 1, *ids[:t]))))) for t in range(len(ids))]))
    assert result.reward == pytest.approx(found, abs=1e-5)
    assert result.usage.rm_calls == 3
    assert result.usage.rm_tokens == 3 * 4
    assert math.isfinite(found)


@pytest.mark.slow
async def test_on_a_real_model_it_is_that_of_a_full_pass(llama_float64: Pair) -> None:
    import torch

    source = llama_float64.engine(slots=4)
    reward = ConfidenceReward(source)
    prompt = source.encode(words([5, 6, 7]))
    ids = (9, 4, 11, 5)
    [found] = await reward.score(prompt, [Response("", ids)])
    with torch.inference_mode():
        logits = llama_float64.lm(torch.tensor([[*prompt.token_ids, *ids[:-1]]]), use_cache=False).logits[0, -4:]
    log_p = logits.log_softmax(-1)
    assert found == pytest.approx(float((-log_p.mean(-1) - math.log(log_p.shape[-1])).mean()), abs=1e-6)
    await source.aclose()


@pytest.mark.slow
async def test_a_reward_that_reads_with_the_engine_does_not_wait_for_its_candidates(llama_float64: Pair) -> None:
    """The candidates that wait for a reward hold all cache slots."""
    source = llama_float64.engine(slots=3)
    for method, reward in ((SelfCertainty(n=6), None), (BestOfN(n=6), WeightedSum([ConfidenceReward(source)], [2.0]))):
        decoder = Decoder(source, reward, method)
        async with asyncio.timeout(60):
            results = await decoder.abatch([words([5, 6, 7])] * 4, max_tokens=12, progress=False)
        assert all(result.usage.rm_calls == 6 for result in results)
    await source.aclose()
