"""An error that one row of a batch causes is the PromptError or RewardError of that row alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.random_models import Pair, byte_tokenizer, language_model, word_tokenizer, words
from transformers import BartConfig, BartForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

from cards import Decoder
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.engines.base import Engine
from cards.engines.mock import MockEngine
from cards.engines.text import encode
from cards.errors import BatchError, PromptError, RewardError
from cards.events import Prompt, Response
from cards.fingerprint import fingerprint
from cards.methods import BestOfN
from cards.methods.vanilla import Vanilla

REFUSAL = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
TEMPLATE = REFUSAL + "{% for m in messages %}{{ m.content }}{% endfor %}"
SMALL: dict[str, Any] = {"vocab_size": 80, "num_labels": 1}


def system(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": text}, {"role": "user", "content": text}]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def engine(template: str | None = TEMPLATE, **options: Any) -> TransformersEngine:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = template
    return TransformersEngine(language_model("llama"), tokenizer, **options)


def errors(decoder: Decoder, prompts: list[Any]) -> dict[int, Exception]:
    with pytest.raises(BatchError) as caught:
        decoder.batch(prompts, max_tokens=4, progress=False)
    complete = [i for i, result in enumerate(caught.value.results) if result is not None]
    assert sorted([*complete, *caught.value.errors]) == list(range(len(prompts)))
    return caught.value.errors


def test_a_template_that_refuses_a_prompt_fails_that_row() -> None:
    found = errors(Decoder(engine(), None, Vanilla()), [user("w3"), system("w4"), user("w5")])
    assert [*found] == [1]
    assert isinstance(found[1], PromptError)
    assert "no system role" in str(found[1])


def test_a_reward_template_that_refuses_a_prompt_fails_that_row(llama_float32: Pair) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    rm = llama_float32.reward().model
    rm.resize_token_embeddings(len(tokenizer))
    reward = ClassifierReward(rm, tokenizer)
    plain = engine("{% for m in messages %}{{ m.content }}{% endfor %}")
    found = errors(Decoder(plain, reward, BestOfN(n=2)), [user("w3"), system("w4"), user("w5")])
    assert [*found] == [1]
    assert isinstance(found[1], RewardError)
    assert "no system role" in str(found[1])


@pytest.mark.parametrize("wrong", ["a \ud83d", [{"role": "user", "content": "a \ud83d"}]], ids=["raw", "chat"])
def test_half_a_character_in_a_prompt_is_refused(wrong: Any) -> None:
    engines: list[Engine] = [engine(), MockEngine(lambda ids: [0.5, 0.5], "ab")]
    for one in engines:
        with pytest.raises(PromptError, match=r"lone surrogate.*'\\ud83d'.*position 2"):
            one.encode(wrong)


@pytest.mark.parametrize("token", [80, 85, -1])
def test_ids_without_an_embedding_are_refused(token: int) -> None:
    lm = engine()
    lm.tokenizer.add_tokens(["w90"])
    prompts = ["w3", Prompt("?", (3, token), vocabulary=lm.vocabulary), "w4", *(["w3 w90"] if token == 80 else [])]
    found = errors(Decoder(lm, None, Vanilla()), prompts)
    assert sorted(found) == [1, *([3] if token == 80 else [])]
    assert all(isinstance(error, PromptError) for error in found.values())
    assert f"token id {token}, " in str(found[1])


async def test_a_reward_refuses_ids_without_an_embedding(llama_float32: Pair) -> None:
    reward = llama_float32.reward()
    prompt = encode(llama_float32.tokenizer, words([3]))
    with pytest.raises(RewardError, match="token id 80, "):
        await reward.score(prompt, [Response("x", (80,))])
    assert len(await reward.score(prompt, [Response("x", (5,))])) == 1


async def test_an_encoder_reads_up_to_its_own_limit_which_counts_from_the_padding_id() -> None:
    tokenizer = word_tokenizer()
    config = RobertaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=34, **SMALL
    )
    reward = ClassifierReward(RobertaForSequenceClassification(config), tokenizer)
    assert reward.context == 34 - 2  # the padding id is 1
    prompt = Prompt("?", (3,), vocabulary=fingerprint(tokenizer))
    assert len(await reward.score(prompt, [Response("x", (5,) * 31)])) == 1
    with pytest.raises(RewardError, match="reads at most 32 tokens, got 33"):
        await reward.score(prompt, [Response("x", (5,) * 32)])


def bart() -> ClassifierReward:
    """It scores the state of the last end token, so a text needs one, and the texts of a batch equally many."""
    torch.manual_seed(0)
    ends: dict[str, Any] = {"eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 1, "forced_eos_token_id": None}
    layers: dict[str, Any] = {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }
    sizes: dict[str, Any] = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64}
    return ClassifierReward(BartForSequenceClassification(BartConfig(**SMALL, **ends, **layers, **sizes)), word_tokenizer())


async def test_texts_that_cannot_be_read_together_are_read_alone_and_only_wrong_ones_fail() -> None:
    reward = bart()
    prompt = Prompt("?", (3,), vocabulary=reward.vocabulary)
    texts = [Response("a", (5, 1)), Response("b", (6, 1, 7, 1))]
    alone = [(await reward.score(prompt, [text]))[0] for text in texts]
    assert await reward.score(prompt, texts) == pytest.approx(alone)
    with pytest.raises(RewardError, match=r"cannot read the prompt '\?'"):
        await reward.score(prompt, [Response("c", (5, 6))])


def test_a_text_that_a_reward_cannot_read_fails_its_row() -> None:
    reward, lm = bart(), engine()
    lm.end_ids = frozenset()
    ended = [Prompt("?", (3, 1, i), vocabulary=lm.vocabulary) for i in (4, 5)]
    found = errors(Decoder(lm, reward, BestOfN(n=2)), [ended[0], "w3 w4", ended[1]])
    assert [*found] == [1]
    assert isinstance(found[1], RewardError)
