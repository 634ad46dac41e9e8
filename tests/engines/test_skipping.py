"""An LM without some of its layers: the same weights, a model of its own, and a draft whose law does not show."""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
import torch
from helpers.random_models import CONTEXT, END, WORDS, Pair, word_tokenizer, words
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from cards import Decoder
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.skipping import layers_of, layers_to_skip, skipped_layers, without_layers
from cards.engines.base import Ask
from cards.engines.mock import MockEngine
from cards.engines.speculative import SpeculativeEngine
from cards.errors import MismatchError, ModelError, SettingError
from cards.events import Response
from cards.sampling import Sampling
from cards.testing import check_law

pytestmark = pytest.mark.slow

LAYERS = 5


def model(kind: str, vocabulary: int = WORDS) -> PreTrainedModel:
    torch.manual_seed(5)
    ends: dict[str, Any] = {"eos_token_id": END, "bos_token_id": None}
    if kind == "gpt2":
        config = GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=LAYERS, n_head=4, n_positions=CONTEXT, **ends)
        made: PreTrainedModel = GPT2LMHeadModel(config)
    else:
        made = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=LAYERS,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=CONTEXT,
                **ends,
            )
        )
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.dim() == 2 and "wpe" not in name:
                weight.normal_(0.0, 0.35)
    made.double().eval()
    return made


@pytest.fixture(params=["llama", "gpt2"])
def whole(request: pytest.FixtureRequest) -> PreTrainedModel:
    return model(request.param)


def removed(whole: PreTrainedModel, skipped: list[int]) -> PreTrainedModel:
    """A copy without these layers, made the plain way."""
    shorter = copy.deepcopy(whole)
    owner, name = (shorter.transformer, "h") if hasattr(shorter, "transformer") else (shorter.model, "layers")
    kept = [layer for i, layer in enumerate(getattr(owner, name)) if i not in skipped]
    setattr(owner, name, torch.nn.ModuleList(kept))
    return shorter


async def test_its_logits_are_those_of_a_model_without_these_layers(whole: PreTrainedModel) -> None:
    shorter = removed(whole, [1, 3])
    engine = TransformersEngine(whole, word_tokenizer(), slots=4)
    draft = TransformersEngine(without_layers(whole, [1, 3]), word_tokenizer(), slots=4)
    ids = [int(i) for i in np.random.default_rng(3).integers(2, WORDS, 40)]
    with torch.inference_mode():
        expected = shorter(torch.tensor([ids]), use_cache=False).logits[0, -15:].numpy()
        full = whole(torch.tensor([ids]), use_cache=False).logits[0, -15:].numpy()
    prompt = engine.encode(words(ids[:20]))
    for length in (31, 40):  # some of it from the slots
        found = await draft.logits(prompt, Response(token_ids=tuple(ids[20:length])), 6)
        np.testing.assert_allclose(found, expected[length - 31 :][:6] if length == 31 else expected[-6:], atol=1e-5)
    assert np.abs(expected - full).max() > 0.1
    np.testing.assert_allclose(await engine.logits(prompt, Response(token_ids=tuple(ids[20:])), 15), full, atol=1e-5)


def test_weights_are_shared_and_what_is_skipped_is_not_paid_for(whole: PreTrainedModel) -> None:
    engine = TransformersEngine(whole, word_tokenizer(), slots=4)
    draft = TransformersEngine(without_layers(whole, [1, 3]), word_tokenizer(), slots=4)
    assert {id(p) for p in draft.model.parameters()} < {id(p) for p in whole.parameters()}
    assert draft.scheduler.slots.cache.flops < engine.scheduler.slots.cache.flops
    assert len(layers_of(whole)[1]) == LAYERS


def test_its_law_is_that_of_the_whole_model(whole: PreTrainedModel) -> None:
    engine = TransformersEngine(whole, word_tokenizer(), slots=32)
    draft = TransformersEngine(without_layers(whole, [1, 2, 3]), word_tokenizer(), slots=32)
    source = SpeculativeEngine(engine, draft, 2)
    prompt, sampling = engine.encode(words(range(5, 15))), Sampling(0.8, top_k=4)

    async def two(engine: TransformersEngine) -> dict[tuple[int, ...], float]:
        law: dict[tuple[int, ...], float] = {}
        [first] = await engine.logits(prompt, Response())
        for a, p in shaped(first, sampling).items():
            [second] = await engine.logits(prompt, Response(token_ids=(a,)))
            law |= {(a, b): p * q for b, q in shaped(second, sampling).items()} if a != END else {(a,): p}
        return law

    async def drawn() -> Counter[tuple[int, ...]]:
        ask = Ask(prompt, Response(), 2, sampling=sampling, n=800, seed=3)
        async with aclosing(source.propose(ask)) as batches:
            return Counter([s.token_ids async for batch in batches for s in batch])

    check_law(asyncio.run(drawn()), asyncio.run(two(engine)), wrong=asyncio.run(two(draft)))


def shaped(logits: np.ndarray, sampling: Sampling) -> dict[int, float]:
    kept = np.argsort(-logits)[: sampling.top_k]
    weights = np.exp((logits[kept] - logits.max()) / sampling.temperature)
    return dict(zip(kept.tolist(), (weights / weights.sum()).tolist(), strict=True))


def test_few_are_skipped_at_first_and_never_the_ends() -> None:
    assert skipped_layers(6, 0.5) == [1, 3, 4]
    assert skipped_layers(12, 0.5) == [2, 4, 6, 7, 9, 10]
    for count in (3, 7, 24, 80):
        for share in (0.1, 0.34, 0.5, 0.8, 0.99):
            skipped = skipped_layers(count, share)
            assert len(skipped) == min(round(share * count), count - 2)
            assert not {0, count - 1} & set(skipped)
            assert sum(i < count // 2 for i in skipped) <= sum(i >= count / 2 for i in skipped)


def test_the_method_makes_it_once_and_its_answers_do_not_depend_on_company_or_cache() -> None:
    engine = TransformersEngine(model("llama"), word_tokenizer(), slots=4)
    made = engine.without_layers(0.4)
    decoder = Decoder(SpeculativeEngine(engine, made), None, "vanilla")
    results = decoder.batch([words(range(i, i + 9)) for i in range(3, 11)], max_tokens=12, seed=2)
    assert engine.without_layers(0.4) is made
    assert all(r.usage.draft_decoded_tokens > 0 and r.usage.lm_wasted_tokens == 0 for r in results)
    for i, result in enumerate(results):
        for e in (engine, made):
            e.forget()
        assert decoder(words(range(i + 3, i + 12)), max_tokens=12, seed=result.seed).text == result.text


def test_models_without_such_layers_are_refused() -> None:
    with pytest.raises(MismatchError, match="cannot skip layers"):
        MockEngine(lambda ids: [0.5, 0.5], "ab").without_layers(0.5)
    with pytest.raises(ModelError, match="too few layers"):
        Pair.make("llama", torch.float64).engine().without_layers(0.5)
    odd = model("llama")
    odd.config.num_hidden_layers = 7
    with pytest.raises(ModelError, match="one list of 7 layers, got 0"):
        layers_of(odd)
    with pytest.raises(SettingError, match="skip_layers must be above 0 and below 1"):
        layers_to_skip(model("llama"), 1.0)
