"""A reward model scores as its own forward pass does on one text, or it is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import cards
from cards.backends.local.readers import CausalScorer, LayoutScorer
from cards.backends.local.rewards import ClassifierReward
from cards.errors import ModelError

TINY = Path(cards.__file__).parent / "tiny" / "tokenizer"
SMALL: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "num_labels": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
XLNET = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}
FUNNEL = {"block_sizes": [1, 1], "num_decoder_layers": 1, "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48}


class Scaled(hf.LlamaForSequenceClassification):
    """A reward model that does more than apply its score head to the last hidden state."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 10
        return output


class Noisy(hf.BertForSequenceClassification):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + torch.rand_like(output.logits)
        return output


def make(model: Any, config: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    settings = SMALL | changes
    if config is hf.FunnelConfig:
        del settings["num_hidden_layers"]
    return model(config(**settings)).eval()


MODELS: dict[str, tuple[Any, str]] = {
    "llama": (lambda: make(hf.LlamaForSequenceClassification, hf.LlamaConfig), "slots"),
    "scaled": (lambda: make(Scaled, hf.LlamaConfig), "single"),
    "bert": (lambda: make(hf.BertForSequenceClassification, hf.BertConfig), "padded"),
    "xlnet": (lambda: make(hf.XLNetForSequenceClassification, hf.XLNetConfig, **XLNET), "equal"),
    "fnet": (lambda: make(hf.FNetForSequenceClassification, hf.FNetConfig), "equal"),
    "funnel": (lambda: make(hf.FunnelForSequenceClassification, hf.FunnelConfig, **FUNNEL), "any"),
    "convbert": (lambda: make(hf.ConvBertForSequenceClassification, hf.ConvBertConfig, embedding_size=32), "any"),
    "gpt-oss": (
        lambda: make(
            hf.GptOssForSequenceClassification,
            hf.GptOssConfig,
            head_dim=8,
            num_key_value_heads=2,
            num_local_experts=2,
            num_experts_per_tok=1,
            sliding_window=16,
        ),
        "any",
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_scores_equal_the_models_own_forward_on_one_text(kind: str) -> None:
    build, layout = MODELS[kind]
    tokenizer = hf.AutoTokenizer.from_pretrained(TINY)
    model = build()
    random = torch.Generator().manual_seed(1)
    rows = [torch.randint(2, 4000, (n,), generator=random).tolist() for n in (5, 17, 17, 50, 51, 8)]
    with torch.inference_mode():
        expected = [model(torch.tensor([row])).logits.item() for row in rows]
    reward = ClassifierReward(model, tokenizer, context=64, slots=4)
    assert asyncio.run(reward.read(rows)) == pytest.approx(expected, rel=1e-3, abs=1e-4)
    found = "slots" if isinstance(reward.reader, CausalScorer) else reward.reader.layout
    assert layout in ("any", found)


def test_the_last_token_is_read_even_if_it_is_the_padding_token() -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(TINY)
    model = make(Scaled, hf.LlamaConfig)
    reward = ClassifierReward(model, tokenizer, context=64)
    assert isinstance(reward.reader, LayoutScorer)
    [ended, begun] = asyncio.run(reward.read([[5, 6, 1], [5, 6]]))
    assert ended != pytest.approx(begun)
    assert model.config.pad_token_id == 1


def test_a_model_that_does_not_repeat_its_outputs_is_refused() -> None:
    with pytest.raises(ModelError, match="different outputs for the same text"):
        ClassifierReward(make(Noisy, hf.BertConfig), hf.AutoTokenizer.from_pretrained(TINY))
