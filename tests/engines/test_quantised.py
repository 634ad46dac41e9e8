"""Quantised LMs and reward models give what their own forward pass gives, or are refused with the reason."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme, apply_quantization_config
from compressed_tensors.quantization.utils import calculate_qparams
from helpers.random_models import language_model, word_tokenizer
from torchao.quantization import Int8WeightOnlyConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    TorchAoConfig,
)

from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.background import background
from cards.errors import ModelError
from cards.events import Prompt, Response

pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages, while they quantise
IDS = (5, 9, 2, 7, 11, 30, 4, 8, 8, 21)
CONFIGS: dict[str, Callable[[], Any]] = {
    "bitsandbytes 4-bit": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
    "bitsandbytes 8-bit": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "torchao": lambda: TorchAoConfig(Int8WeightOnlyConfig()),
}
METHODS = [*CONFIGS, "compressed-tensors"]
EXACT = [method for method in METHODS if method != "bitsandbytes 8-bit"]


def saved(folder: Path, kind: str, method: str) -> Path:
    """Save a quantised random model with its tokenizer, and return its folder."""
    plain, quantised = folder / "plain", folder / "quantised"
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_labels": 1}
    config = LlamaConfig(
        vocab_size=80, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, eos_token_id=1, bos_token_id=None, **options, initializer_range=0.2,
    )  # fmt: skip
    (LlamaForCausalLM if kind == "lm" else LlamaForSequenceClassification)(config).save_pretrained(plain)
    word_tokenizer().save_pretrained(quantised)
    if method == "compressed-tensors":
        compress(read(plain, kind), quantised)
    else:
        read(plain, kind, quantization_config=CONFIGS[method](), device_map="cpu").save_pretrained(quantised)
    return quantised


def read(folder: Path, kind: str, **options: Any) -> PreTrainedModel:
    auto = AutoModelForCausalLM if kind == "lm" else AutoModelForSequenceClassification
    model: PreTrainedModel = auto.from_pretrained(folder, dtype=torch.float32, **options).eval()
    return model


def compress(model: PreTrainedModel, folder: Path) -> None:
    weights = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="channel")
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    apply_quantization_config(
        model, QuantizationConfig(config_groups={"all": scheme}, ignore=["lm_head", "score"], format="pack-quantized")
    )
    for module in model.modules():
        if isinstance(scale := getattr(module, "weight_scale", None), torch.Tensor):
            weight: Any = module.weight
            scale.data.copy_(calculate_qparams(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True), weights)[0])
    compressor: Any = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)


@torch.no_grad()
def own(model: Any) -> Any:
    outputs = model(input_ids=torch.tensor([IDS])).logits[0]
    return (outputs[-1] if outputs.ndim == 2 else outputs).float().numpy()


def logits(engine: TransformersEngine) -> Any:
    return background().run(engine.logits(Prompt("", IDS), Response()))[-1]


@pytest.mark.parametrize("method", EXACT)
def test_quantised_lms_give_their_own_logits(tmp_path: Path, method: str) -> None:
    folder = saved(tmp_path, "lm", method)
    expected = own(read(folder, "lm"))
    for engine in (
        TransformersEngine.load(str(folder), slots=2),
        TransformersEngine(read(folder, "lm"), word_tokenizer(), slots=2),
    ):
        np.testing.assert_allclose(logits(engine), expected, rtol=1e-4, atol=1e-4)
        assert type(engine.scheduler.slots.cache).__name__ == "TorchCache"


@pytest.mark.parametrize("method", METHODS)
def test_quantised_reward_models_give_their_own_scores(tmp_path: Path, method: str) -> None:
    folder = saved(tmp_path, "rm", method)
    expected = float(own(read(folder, "rm"))[0])
    for reward in (
        ClassifierReward.load(str(folder), slots=2),
        ClassifierReward(read(folder, "rm"), word_tokenizer(), slots=2),
    ):
        assert background().run(reward.read([list(IDS), [5, 9]]))[0] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_lms_whose_outputs_depend_on_the_batch_are_refused_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path, "lm", "bitsandbytes 8-bit")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(ModelError, match="depend on the other tokens of a pass"):
        TransformersEngine.load(str(folder))


def test_weights_that_need_a_missing_package_are_refused_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = language_model("llama")
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    model.config.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(ModelError, match=r"has gptq weights, which cannot be loaded here: ImportError: .*optimum"):
        TransformersEngine.load(str(tmp_path))


def test_weights_of_an_unknown_method_are_refused(tmp_path: Path) -> None:
    model = language_model("llama")
    model.config.quantization_config = {"quant_method": "unknown-method"}
    model.config.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has unknown-method weights, which cannot be loaded here"):
        TransformersEngine.load(str(tmp_path))


@pytest.mark.parametrize("method", METHODS)
def test_packages_for_quantised_weights_print_nothing(
    tmp_path: Path, method: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = saved(tmp_path, "rm", method)
    capfd.readouterr()
    caplog.clear()
    reward = ClassifierReward.load(str(folder), slots=2)
    background().run(reward.read([list(IDS)]))
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.name != "cards" and record.levelno >= logging.WARNING] == []
