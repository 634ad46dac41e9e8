"""Models whose files cannot be used are refused with the reason, before any weights are read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.random_models import language_model, reward_model, word_tokenizer
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.errors import ModelError, UnknownNameError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    language_model("llama").save_pretrained(tmp_path, max_shard_size="10KB")
    word_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def shard(folder: Path) -> Path:
    return max(folder.glob("*.safetensors"))


def test_a_whole_folder_loads(folder: Path) -> None:
    assert TransformersEngine.load(str(folder), slots=2).context


def test_missing_files_are_named(folder: Path) -> None:
    shard(folder).unlink()
    with pytest.raises(ModelError, match=r"lacks 1 of \d+ weight files: model-"):
        TransformersEngine.load(str(folder))


def test_truncated_files_are_named(folder: Path) -> None:
    data = shard(folder).read_bytes()
    shard(folder).write_bytes(data[:-7])
    with pytest.raises(ModelError, match="damaged or incomplete"):
        TransformersEngine.load(str(folder))


def test_pointers_of_git_lfs_are_named(folder: Path) -> None:
    shard(folder).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 12345\n")
    with pytest.raises(ModelError, match="git lfs pull"):
        TransformersEngine.load(str(folder))


def test_a_folder_without_weights_is_not_called_unknown(folder: Path) -> None:
    for file in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        file.unlink()
    with pytest.raises(ModelError, match="has no weights") as caught:
        TransformersEngine.load(str(folder))
    assert not isinstance(caught.value, UnknownNameError)


def test_a_model_of_another_kind_is_refused_by_its_architecture(tmp_path: Path) -> None:
    reward_model("llama").save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="it is a sequence classifier"):
        TransformersEngine.load(str(tmp_path))


def test_weights_whose_outputs_depend_on_the_batch_are_refused() -> None:
    model: Any = language_model("llama")
    model.is_loaded_in_8bit = True
    with pytest.raises(ModelError, match="depend on the other tokens of a pass"):
        TransformersEngine(model, word_tokenizer(), slots=2)


def as_bin(folder: Path) -> list[Path]:
    """Turn the weights of a folder into two files of PyTorch with an index."""
    files = sorted(folder.glob("*.safetensors"))
    weights = {key: value for file in files for key, value in load_file(file).items()}
    for file in [*files, *folder.glob("*.index.json")]:
        file.unlink()
    names = sorted(weights)
    parts = {"pytorch_model-1.bin": names[:4], "pytorch_model-2.bin": names[4:]}
    for part, keys in parts.items():
        torch.save({key: weights[key] for key in keys}, folder / part)
    mapping = {key: part for part, keys in parts.items() for key in keys}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": mapping}))
    return [folder / part for part in parts]


def test_files_of_pytorch_are_checked_too(folder: Path) -> None:
    first, last = as_bin(folder)
    assert TransformersEngine.load(str(folder), slots=2).context
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"pytorch_model-2.bin is damaged or incomplete"):
        TransformersEngine.load(str(folder))
    last.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelError, match="git lfs pull"):
        TransformersEngine.load(str(folder))
    first.unlink()
    with pytest.raises(ModelError, match=r"lacks 1 of 2 weight files: pytorch_model-1.bin"):
        TransformersEngine.load(str(folder))


def test_weights_of_other_shapes_are_named(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"intermediate_size": 64}))
    with pytest.raises(ModelError, match=r"has shape \(.*48.*\) instead of \(.*64.*\)"):
        TransformersEngine.load(str(folder))


def test_a_reward_model_with_parts_that_would_not_be_used_is_refused(tmp_path: Path) -> None:
    reward_model("llama").save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors") | {"gating.weight": torch.zeros(2, 2)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"architectures": ["GatedReward"]}))
    with pytest.raises(ModelError, match=r"does not use \(gating.weight\), so its scores would be wrong"):
        ClassifierReward.load(str(tmp_path))


def test_a_model_on_several_devices_is_refused() -> None:
    model: Any = language_model("llama")
    model.lm_head.to("meta")
    with pytest.raises(ModelError, match=r"is on several devices \(cpu, meta\)"):
        TransformersEngine(model, word_tokenizer())


def test_models_that_are_no_causal_lms_are_refused_by_their_architecture(tmp_path: Path) -> None:
    T5ForConditionalGeneration(T5Config(vocab_size=80, d_model=16, num_layers=1, num_heads=2, d_kv=8)).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot be a language model: transformers has no AutoModelForCausalLM for it"):
        TransformersEngine.load(str(tmp_path))
    BertForMaskedLM(
        BertConfig(vocab_size=80, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot be a language model: it is a masked LM"):
        TransformersEngine.load(str(tmp_path))


def test_a_file_or_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelError, match="is a file"):
        TransformersEngine.load(str(tmp_path / "notes.txt"))
    with pytest.raises(ModelError, match=r"has no config.json"):
        TransformersEngine.load(str(tmp_path))
