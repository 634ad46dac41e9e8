"""What the generation config of a model asks for is honoured exactly, or named in a warning."""

from __future__ import annotations

import copy
import logging
from typing import Any, cast

import pytest
import torch
import transformers as hf
from helpers.random_models import language_model, word_tokenizer, words

from cards import Ask, Decoder
from cards.backends import generation
from cards.backends.local.engine import TransformersEngine
from cards.boundaries import FixedLength
from cards.engines.exclusions import Exclusions
from cards.engines.speculative import SpeculativeEngine
from cards.events import Response
from cards.methods import ARGS, BestOfN, ContrastiveDecoding, Vanilla
from cards.methods.base import collect_segments
from cards.rewards import FunctionReward
from cards.sampling import Sampling
from cards.shaping import Shaping
from cards.testing import check_law

PROMPT = (5, 9, 23, 14)
GREEDY = Vanilla(temperature=0.0)


def lm(seed: int = 0, **config: Any) -> hf.PreTrainedModel:
    model = language_model("llama", seed=seed)
    torch.nn.Module.to(model, torch.float64)
    model.generation_config = hf.GenerationConfig(eos_token_id=1, pad_token_id=0, **config)
    return model


def greedy(model: hf.PreTrainedModel, count: int = 24) -> list[int]:
    ids = torch.tensor([PROMPT])
    whole = cast(Any, model).generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count)
    return [int(token) for token in whole[0, len(PROMPT) :]]


async def greedy_of_cards(engine: Any, count: int = 24, method: Any = GREEDY) -> list[int]:
    reward = FunctionReward(lambda prompt, response: 0.0)
    return list((await Decoder(engine, reward, method).agenerate(words(PROMPT), max_tokens=count)).token_ids)


def asking(unwanted: list[int]) -> list[dict[str, Any]]:
    """Return generation configs that exclude what the model would write, `unwanted`."""
    a, b, c, d = unwanted[:4]
    return [
        {"suppress_tokens": [a, c]},
        {"begin_suppress_tokens": [a]},
        {"bad_words_ids": [[b], [c, d], [1]]},
        {"bad_words_ids": [[PROMPT[-1], a], [*PROMPT, a], [*PROMPT, *PROMPT, b]]},  # words that the prompt begins
        {"suppress_tokens": [b], "begin_suppress_tokens": [a, 3], "bad_words_ids": [[c, d]], "forced_bos_token_id": 7},
    ]


@pytest.mark.parametrize("number", range(5))
async def test_excluded_tokens_are_those_of_generate(number: int) -> None:
    plain = greedy(lm())
    config = asking(plain)[number]
    expected = greedy(lm(**config))
    assert expected != plain
    engine = TransformersEngine(lm(**config), word_tokenizer(), slots=4)
    assert await greedy_of_cards(engine) == expected
    draft = TransformersEngine(lm(3), word_tokenizer(), slots=4)
    for drafting in (draft, TransformersEngine(lm(), word_tokenizer(), slots=4)):
        assert await greedy_of_cards(SpeculativeEngine(engine, drafting)) == expected
    assert await greedy_of_cards(engine, method=ARGS()) == expected
    same = ContrastiveDecoding(amateur=engine, plausibility=1.0)  # only the most likely token is plausible
    assert await greedy_of_cards(engine, method=same) == expected


@pytest.mark.parametrize("config", [{}, {"suppress_tokens": [9]}], ids=["alone", "with excluded tokens"])
async def test_the_repetition_penalty_is_that_of_generate(config: dict[str, Any]) -> None:
    plain, expected = greedy(lm(**config)), greedy(lm(repetition_penalty=1.3, **config))
    assert expected != plain
    engine = TransformersEngine(lm(repetition_penalty=1.3, **config), word_tokenizer(), slots=4)
    draft = TransformersEngine(lm(), word_tokenizer(), slots=4)
    for source in (engine, SpeculativeEngine(engine, draft)):
        assert await greedy_of_cards(source) == expected
    assert await greedy_of_cards(engine, method=Vanilla(temperature=0.0, chunk=3)) == expected
    assert await greedy_of_cards(engine, method=ARGS()) == expected
    decoder = Decoder(engine, None, GREEDY)
    off = await decoder.agenerate(words(PROMPT), max_tokens=24, shaping=Shaping(repetition_penalty=1.0))
    assert list(off.token_ids) == plain


async def test_each_end_token_of_the_config_ends_a_response() -> None:
    plain = greedy(lm())
    model = lm()
    model.generation_config.eos_token_id = [1, plain[5], plain[9]]
    assert greedy(model) == plain[: plain.index(plain[5]) + 1]
    result = await Decoder(TransformersEngine(model, word_tokenizer(), slots=4), None, Vanilla(temperature=0.0)).agenerate(
        words(PROMPT), max_tokens=24
    )
    assert list(result.token_ids) == plain[: plain.index(plain[5]) + 1]
    assert result.finish_reason == "stop"


async def test_proposals_follow_the_law_without_the_excluded_tokens() -> None:
    model = lm()
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT])).logits[0, -1]
    frequent = [int(token) for token in logits.topk(2).indices]
    model.generation_config.begin_suppress_tokens = frequent
    engine = TransformersEngine(model, word_tokenizer(), slots=32)
    ask = Ask(engine.encode(words(PROMPT)), Response(), 4, FixedLength(maximum=1), Sampling(top_k=8), n=2000)
    draws = [segment.token_ids[0] for segment in await collect_segments(engine, ask)]

    def law(best: Any) -> dict[int, float]:
        return dict(zip(best.indices.tolist(), best.values.softmax(0).tolist(), strict=True))

    allowed = logits.clone()
    allowed[frequent] = -torch.inf
    after_top_k = logits.topk(8)  # a mask behind top-k, instead of before it
    after_top_k.values[:2] = -torch.inf
    check_law(draws, law(allowed.topk(8)), wrong={key: p for key, p in law(after_top_k).items() if p > 0})


async def test_rewards_and_boundaries_read_the_logits_of_the_model() -> None:
    model = lm(suppress_tokens=[4, 5, 6])
    engine = TransformersEngine(copy.deepcopy(model), word_tokenizer(), slots=4)
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT])).logits[0, -1].float().numpy()
    [found] = await engine.logits(engine.encode(words(PROMPT)), Response())
    assert found == pytest.approx(expected, abs=1e-5)


async def test_other_methods_write_no_excluded_token() -> None:
    banned = {token for token in range(2, 80) if token % 3 == 0}
    engine = TransformersEngine(lm(suppress_tokens=sorted(banned)), word_tokenizer(), slots=8)
    tokens = await greedy_of_cards(engine, 16, BestOfN(n=4, temperature=2.0, top_k=None))
    assert not banned.intersection(tokens)


def test_ids_beyond_the_vocabulary_and_end_tokens_as_words_are_left_out() -> None:
    model = lm(suppress_tokens=[3, 200, -1], bad_words_ids=[[1], [4], [5, 300], [6, 7]])
    assert generation.exclusions(model, {1}) == Exclusions((3, 4), (), ((6, 7),))
    assert not Exclusions()


def test_what_is_not_applied_is_named_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "_warned", set())
    model = lm(min_new_tokens=2, no_repeat_ngram_size=3, temperature=0.6, top_p=0.9, do_sample=True, suppress_tokens=[4])
    model.generation_config.forced_bos_token_id = 7
    with caplog.at_level(logging.WARNING, "cards"):
        for _ in range(2):
            TransformersEngine(copy.deepcopy(model), word_tokenizer(), slots=2, name="some-model")
        TransformersEngine(lm(min_new_tokens=0), word_tokenizer(), slots=2, name="another")
    [record] = caplog.records
    assert record.getMessage() == (
        "The generation config of model 'some-model' has no_repeat_ngram_size=3, min_new_tokens=2, forced_bos_token_id=7, "
        "which cards does not apply."
    )
