"""Reward models whose own forward pass vLLM may not compute are refused before vLLM starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from cards.backends.checkpoint import Checkpoint
from cards.backends.files import ModelFolder
from cards.backends.vllm.heads import check_head, check_options
from cards.errors import ModelError, SettingError

KNOWN = {"LlamaForCausalLM", "Qwen2ForCausalLM", "BertForSequenceClassification", "ModernBertForSequenceClassification"}
SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_labels": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class Scaled(hf.LlamaForSequenceClassification):
    """A class from outside of transformers."""


def check(model_class: Any, files: tuple[str, ...] = (), **changes: Any) -> None:
    settings = {"architectures": [model_class.__name__]} | SMALL | changes
    with torch.device("meta"):
        model = model_class(model_class.config_class(**settings))
    model.config.architectures = settings["architectures"]
    folder = ModelFolder("rm", Path(), frozenset({"config.json", *files}))
    check_head(Checkpoint("rm", "rm", folder, model.config, hf.AutoModelForSequenceClassification, True), model, KNOWN)


@pytest.mark.parametrize(
    "accepted",
    [
        hf.LlamaForSequenceClassification,
        hf.Qwen2ForSequenceClassification,
        hf.BertForSequenceClassification,
        hf.ModernBertForSequenceClassification,
    ],
)
def test_classes_that_vllm_computes_are_accepted(accepted: Any) -> None:
    check(accepted)


@pytest.mark.parametrize(
    ("model_class", "changes", "reason"),
    [
        (Scaled, {}, "comes with its own Python code"),
        (hf.LlamaForSequenceClassification, {"auto_map": {"AutoModel": "own.Own"}}, "comes with its own Python code"),
        (hf.LlamaForSequenceClassification, {"architectures": ["LlamaForRewardModel"]}, "architecture is LlamaForRewardModel"),
        (hf.LlamaForSequenceClassification, {"classifier_from_token": ["no", "yes"]}, "makes another head"),
        (hf.LlamaForSequenceClassification, {"is_causal": False}, "attention is not causal"),
        (hf.LlamaForSequenceClassification, {"files": ("modules.json",)}, "sentence-transformers"),
        (hf.MistralForSequenceClassification, {"num_key_value_heads": 2}, "no MistralForCausalLM"),
        (hf.RobertaForSequenceClassification, {}, "no RobertaForSequenceClassification"),
        (hf.BertForSequenceClassification, {"is_decoder": True}, "does not read"),
        (hf.ModernBertForSequenceClassification, {"classifier_activation": "relu"}, "does not read"),
        (hf.ElectraForSequenceClassification, {}, "does more than apply one layer"),
    ],
)
def test_other_models_are_refused_with_the_reason(model_class: Any, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=rf"vLLM may not score 'rm'.*{reason}.* Load it without vllm:\."):
        check(model_class, **changes)


def test_a_language_model_has_no_head() -> None:
    with pytest.raises(ModelError, match="no trained score head"):
        check(hf.LlamaForSequenceClassification, architectures=["LlamaForCausalLM"])


@pytest.mark.parametrize("option", ["convert", "hf_overrides", "pooler_config"])
def test_options_that_change_scores_are_refused(option: str) -> None:
    with pytest.raises(SettingError, match=f"{option} cannot be set for a reward in vLLM"):
        check_options({option: {}})
