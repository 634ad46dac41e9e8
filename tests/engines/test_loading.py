"""Models whose files cannot be used are refused with the reason, before any weights are read."""

from pathlib import Path
from typing import Any

import pytest
from helpers.random_models import language_model, reward_model, word_tokenizer

from cards.backends.local.engine import TransformersEngine
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
    with pytest.raises(ModelError, match="is a sequence classifier"):
        TransformersEngine.load(str(tmp_path))


def test_weights_whose_outputs_depend_on_the_batch_are_refused() -> None:
    model: Any = language_model("llama")
    model.is_loaded_in_8bit = True
    with pytest.raises(ModelError, match="depend on the other tokens of a pass"):
        TransformersEngine(model, word_tokenizer(), slots=2)
