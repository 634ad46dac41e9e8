"""Adapters of PEFT give what their own forward pass gives, as folders and as objects, as LMs and as rewards."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.random_models import language_model, reward_model, word_tokenizer
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, RobertaConfig, RobertaForMaskedLM

from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.background import background
from cards.errors import ModelError, SettingError
from cards.events import Prompt, Response

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # of PEFT
IDS = (5, 9, 2, 7, 11, 30, 4)


def lora(task: str, **options: Any) -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type=task, init_lora_weights=False, **options)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    language_model("llama").save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapted_lm(base: Path, dtype: torch.dtype = torch.float32) -> Any:
    base_model: Any = language_model("llama")
    model: Any = get_peft_model(base_model.to(dtype), lora(TaskType.CAUSAL_LM))
    model.peft_config["default"].base_model_name_or_path = str(base)
    return model.eval()


def adapted_rm(base: Path) -> Any:
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, pad_token_id=None)
    adapted: Any = get_peft_model(model, lora(TaskType.SEQ_CLS))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    return adapted.eval()


@torch.inference_mode()
def own(model: Any) -> Any:
    """Return the model's own outputs at the end of the text."""
    outputs = model(input_ids=torch.tensor([IDS])).logits[0]
    return (outputs[-1] if outputs.ndim == 2 else outputs).float().numpy()


def logits(engine: TransformersEngine) -> Any:
    return background().run(engine.logits(Prompt("", IDS), Response()))[-1]


def score(reward: ClassifierReward) -> float:
    return background().run(reward.read([list(IDS)]))[0]


def test_an_adapter_folder_is_an_lm_with_its_own_outputs(base: Path, tmp_path: Path) -> None:
    model = adapted_lm(base)
    model.save_pretrained(tmp_path / "adapter")
    engine = TransformersEngine.load(str(tmp_path / "adapter"), slots=2)
    np.testing.assert_allclose(logits(engine), own(model), rtol=1e-4, atol=1e-4)
    assert np.abs(own(model) - own(language_model("llama"))).max() > 0.01


def test_in_half_precision_the_layers_of_the_adapter_stay(base: Path, tmp_path: Path) -> None:
    model = adapted_lm(base, torch.bfloat16)
    model.save_pretrained(tmp_path / "adapter")
    engine = TransformersEngine.load(str(tmp_path / "adapter"), slots=2, dtype="bfloat16")
    assert any("lora_A" in name for name, _ in engine.model.named_modules())
    np.testing.assert_allclose(logits(engine), own(model), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_peft_model_is_an_lm_with_its_own_outputs(base: Path, dtype: torch.dtype) -> None:
    model = adapted_lm(base, dtype)
    expected, error = own(model), 1e-4 if dtype == torch.float32 else 0.05
    np.testing.assert_allclose(logits(TransformersEngine(model, word_tokenizer(), slots=2)), expected, rtol=error, atol=error)
    np.testing.assert_array_equal(own(model), expected)


def test_an_adapter_folder_is_a_reward_with_the_head_that_it_saved(base: Path, tmp_path: Path) -> None:
    model = adapted_rm(base)
    model.save_pretrained(tmp_path / "adapter")
    reward = ClassifierReward.load(str(tmp_path / "adapter"), output=1, slots=2)
    assert score(reward) == pytest.approx(float(own(model)[1]), rel=1e-4)


def test_a_peft_model_is_a_reward_with_its_own_outputs(base: Path) -> None:
    model = adapted_rm(base)
    reward = ClassifierReward(model, word_tokenizer(), output=0, slots=2)
    assert score(reward) == pytest.approx(float(own(model)[0]), rel=1e-4)


def test_an_adapter_of_a_reward_model_keeps_the_head_of_its_base(tmp_path: Path) -> None:
    base = tmp_path / "rm"
    reward_model("llama").save_pretrained(base)
    word_tokenizer().save_pretrained(base)
    model: Any = get_peft_model(reward_model("llama"), lora(TaskType.FEATURE_EXTRACTION)).eval()
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(tmp_path / "adapter")
    assert score(ClassifierReward.load(str(tmp_path / "adapter"), slots=2)) == pytest.approx(float(own(model)[0]), rel=1e-4)


def test_an_adapter_in_the_folder_of_its_base_is_applied(base: Path) -> None:
    model = adapted_lm(base)
    model.save_pretrained(base)
    np.testing.assert_allclose(logits(TransformersEngine.load(str(base), slots=2)), own(model), rtol=1e-4, atol=1e-4)


def test_a_missing_base_is_named(base: Path, tmp_path: Path) -> None:
    adapted_lm(base).save_pretrained(tmp_path / "adapter")
    shutil.rmtree(base)
    with pytest.raises(ModelError, match=r"The base model '.*base' of adapter '.*adapter' cannot be loaded"):
        TransformersEngine.load(str(tmp_path / "adapter"))


def test_an_adapter_of_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    adapted_lm(base).save_pretrained(tmp_path / "adapter")
    language_model("gpt2").save_pretrained(base)
    with pytest.raises(ModelError, match="adapter"):
        TransformersEngine.load(str(tmp_path / "adapter"))


def test_missing_weights_of_an_adapter_are_named(base: Path, tmp_path: Path) -> None:
    adapted_lm(base).save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no weights: it has none of the files adapter_model.safetensors"):
        TransformersEngine.load(str(tmp_path / "adapter"))


def test_an_adapter_without_a_head_is_no_reward(base: Path, tmp_path: Path) -> None:
    adapted_lm(base).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="no trained score head"):
        ClassifierReward.load(str(tmp_path / "adapter"))


def test_an_adapter_of_a_reward_is_no_lm(base: Path, tmp_path: Path) -> None:
    adapted_rm(base).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="Use it as a reward"):
        TransformersEngine.load(str(tmp_path / "adapter"))


def test_adapters_that_add_tokens_are_refused(base: Path, tmp_path: Path) -> None:
    settings = PromptTuningConfig(num_virtual_tokens=3, task_type=TaskType.CAUSAL_LM)
    model: Any = get_peft_model(language_model("llama"), settings)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="adds tokens to the prompt"):
        TransformersEngine(model, word_tokenizer())
    with pytest.raises(ModelError, match="is of type PROMPT_TUNING"):
        TransformersEngine.load(str(tmp_path / "adapter"))


def test_without_peft_an_adapter_names_the_extra(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted_lm(base).save_pretrained(tmp_path / "adapter")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"needs peft: pip install 'cards-decoding\[peft\]'"):
        TransformersEngine.load(str(tmp_path / "adapter"))


def test_the_number_of_outputs_is_that_of_the_last_layer_of_the_head(tmp_path: Path) -> None:
    config = RobertaConfig(
        vocab_size=80, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, type_vocab_size=1
    )
    torch.manual_seed(0)
    RobertaForMaskedLM(config).save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    settings = LoraConfig(r=2, target_modules=["query"], task_type=TaskType.SEQ_CLS, init_lora_weights=False)
    adapted: Any = get_peft_model(model, settings).eval()
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    reward = ClassifierReward.load(str(tmp_path / "adapter"), output=2)
    assert score(reward) == pytest.approx(float(own(adapted)[2]), rel=1e-4)
