"""Logits and log-probabilities of given texts, from the slots as from the model itself."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.random_models import END, Pair, words

from cards.backends.local.engine import TransformersEngine
from cards.backends.local.sampling import draw
from cards.engines.base import Ask
from cards.engines.mock import MockEngine
from cards.errors import SettingError
from cards.events import Response
from cards.sampling import Sampling, distribution, pick
from cards.usage import booked_as, track_usage

IDS = [int(i) for i in np.random.default_rng(3).integers(2, 80, 60)]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair.make(request.param, torch.float32)


@pytest.fixture
def engine(pair: Pair) -> TransformersEngine:
    return pair.engine(slots=4)


@pytest.mark.parametrize("last", [1, 2, 25, 40])
@pytest.mark.parametrize("budget", [7, 1024])
async def test_logits_are_the_models(pair: Pair, engine: TransformersEngine, last: int, budget: int) -> None:
    engine.scheduler.budget = budget
    prompt, response = engine.encode(words(IDS[:20])), Response(token_ids=tuple(IDS[20:45]))
    with torch.inference_mode():
        expected = pair.lm(torch.tensor([IDS[:45]])).logits[0, -last:].numpy()
    for _ in range(2):  # the second time from the cache
        found = await engine.logits(prompt, response, last)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=2e-5)


async def test_logprobs_are_the_models_alone_and_beside_others(pair: Pair, engine: TransformersEngine) -> None:
    prompt = engine.encode(words(IDS[:20]))
    responses = [Response(token_ids=tuple(IDS[i : i + 12])) for i in range(20, 40, 3)]
    proposing = asyncio.create_task(anext(engine.propose(Ask(prompt, Response(), 9, n=3))))
    found = await asyncio.gather(*(engine.logprobs(prompt, response) for response in responses))
    await proposing
    for response, given in zip(responses, found, strict=True):
        with torch.inference_mode():
            logp = pair.lm(torch.tensor([[*IDS[:20], *response.token_ids]])).logits[0, 19:-1].log_softmax(-1)
        expected = logp.gather(1, torch.tensor(response.token_ids)[:, None])[:, 0].numpy()
        np.testing.assert_allclose(given, expected, atol=2e-5)
        np.testing.assert_allclose(await engine.logprobs(prompt, response, 5), expected[-5:], atol=2e-5)
    assert len(await engine.logprobs(prompt, Response())) == 0


async def test_only_what_is_new_is_read(engine: TransformersEngine) -> None:
    prompt = engine.encode(words(IDS[:20]))
    with track_usage() as usage:
        for length in range(4):
            await engine.logits(prompt, Response(token_ids=tuple(IDS[20 : 20 + length])))
    assert (usage.lm_prefill_tokens, usage.lm_cached_tokens, usage.lm_steps) == (20, 20 + 21 + 22, 4)
    assert usage.flops == engine.scheduler.slots.cache.flops * 23


async def test_more_than_there_is_cannot_be_had(engine: TransformersEngine) -> None:
    prompt = engine.encode(words(IDS[:3]))
    with pytest.raises(SettingError, match="got 4"):
        await engine.logits(prompt, Response(), 4)
    with pytest.raises(SettingError, match=r"last must be between 0 and 1"):
        await engine.logprobs(prompt, Response(token_ids=(4,)), 2)


async def test_a_draft_writes_to_its_own_books(engine: TransformersEngine) -> None:
    with track_usage() as usage, booked_as("draft"):
        await engine.logits(engine.encode(words(IDS[:5])), Response())
    assert (usage.draft_prefill_tokens, usage.draft_steps, usage.lm_prefill_tokens, usage.lm_steps) == (5, 1, 0, 0)


async def test_the_mock_gives_what_it_draws_from() -> None:
    engine = MockEngine(lambda ids: [0.5, 0.3, 0.2] if len(ids) % 2 else [0.2, 0.2, 0.6], "ab.", end=".")
    prompt = engine.encode("a")
    assert np.exp(await engine.logits(prompt, Response()))[0].tolist() == pytest.approx([0.5, 0.3, 0.2])
    logprobs = await engine.logprobs(prompt, Response(token_ids=(1, 2)))
    assert np.exp(logprobs).tolist() == pytest.approx([0.3, 0.6])


def test_a_response_grows_by_tokens(engine: TransformersEngine) -> None:
    prompt = engine.encode(words(IDS[:3]))
    grown = engine.extended(prompt, Response("w5", (5,)), [7])
    assert (grown.text, grown.token_ids, grown.finish_reason) == ("w5 w7", (5, 7), None)
    assert engine.extended(prompt, grown, [END]) == replace(grown, token_ids=(5, 7, END), finish_reason="stop")


@pytest.mark.parametrize(
    "sampling", [Sampling(0.0), Sampling(0.7), Sampling(1.3, top_k=5), Sampling(1.0, 9, 0.8), Sampling(0.5, top_p=0.3)], ids=str
)
def test_numpy_draws_as_torch_does(sampling: Sampling) -> None:
    logits = torch.randn(40, 17, generator=torch.Generator().manual_seed(1)) * 3
    u = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    laws = [distribution(row, sampling) for row in logits.numpy()]
    np.testing.assert_allclose(np.sum(laws, axis=-1), 1)
    assert [pick(p, float(x)) for p, x in zip(laws, u, strict=True)] == draw(logits, sampling, u).tolist()
