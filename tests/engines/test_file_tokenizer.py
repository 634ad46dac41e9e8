"""A tokenizer from files is the one that transformers makes of them: the same ids, texts, special tokens and chat template."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from helpers.text_tokenizers import KINDS, SPECIAL, TEXTS, text_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cards.backends.files import TINY
from cards.backends.http.served import ModelFiles
from cards.backends.tokenizer import FileTokenizer
from cards.engines.detokenizer import Detokenizer
from cards.engines.text import encode
from cards.errors import MissingExtraError, SettingError
from cards.fingerprint import fingerprint

TALK: Any = [
    {"role": "user", "content": " the cat?"},
    {"role": "assistant", "content": "sat"},
    {"role": "user", "content": "é"},
]
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
SAMPLES = [*TEXTS, "", " ", "a</s>b <think> c<s>", "  the  cat\n\n", "\u0000 x\ufffd", "e\u0301 \u200d👩\u200d👧", "[extra]the"]


def same(folder: Path) -> FileTokenizer:
    """Compare both tokenizers of a folder in all that this package uses, and return ours."""
    ours, theirs = FileTokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    assert len(ours) == len(theirs)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.added_tokens_decoder.keys() == theirs.added_tokens_decoder.keys()
    assert {i for i, token in ours.added_tokens_decoder.items() if token.special} == {
        i for i, token in theirs.added_tokens_decoder.items() if token.special
    }
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.all_special_ids == theirs.all_special_ids
    for name in ("bos_token", "bos_token_id", "eos_token_id", "sep_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.chat_template == theirs.chat_template
    assert fingerprint(ours) == fingerprint(theirs)
    draws = random.Random(0)
    for text in SAMPLES:
        for special in (True, False):
            ids = ours(text, add_special_tokens=special)["input_ids"]
            assert ids == theirs(text, add_special_tokens=special)["input_ids"]
        assert ours(text, "the cat")["input_ids"] == theirs(text, "the cat")["input_ids"]
    for _ in range(20):
        ids = draws.choices(range(len(ours)), k=8)
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip, clean_up_tokenization_spaces=False)
        assert text_of(ours, ids) == text_of(theirs, ids)
    assert ours.decode(5) == theirs.decode(5)
    for token in (0, 5, len(ours), len(ours) + 7):
        assert ours.convert_ids_to_tokens(token) == theirs.convert_ids_to_tokens(token)
    for name in ("the", "</s>", "\u0120", "no such token"):
        assert ours.convert_tokens_to_ids(name) == theirs.convert_tokens_to_ids(name)
    if ours.chat_template is not None:
        assert encode(ours, TALK) == encode(theirs, TALK)
    return ours


def text_of(tokenizer: Any, ids: list[int]) -> str:
    detokenizer = Detokenizer(tokenizer, ())
    for token in ids:
        detokenizer.push([token])
    return detokenizer.finish()


def saved(kind: str, folder: Path, **config: Any) -> Path:
    """Save a tokenizer with further settings in its configuration."""
    text_tokenizer(kind).save_pretrained(folder)
    change(folder / "tokenizer_config.json", config)
    return folder


def change(file: Path, config: dict[str, Any]) -> None:
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | config))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer_gives_the_same_ids_and_texts(kind: str, tmp_path: Path) -> None:
    same(saved(kind, tmp_path, chat_template=TEMPLATE))


@pytest.mark.parametrize("name", ["lm", "rm", "tokenizer"])
def test_the_embedded_tokenizers_are_the_same(name: str) -> None:
    assert same(TINY / name).chat_template


def test_tokens_of_the_configuration_are_added(tmp_path: Path) -> None:
    added = {"400": {"content": "[extra]", "lstrip": True, "special": False}, "401": {"content": "<x>", "special": True}}
    tokenizer = same(saved("gemma", tmp_path, added_tokens_decoder=added, mask_token="<mask>", image_token="<image>"))
    assert tokenizer.special_tokens_map["image_token"] == "<image>"
    assert {"[extra]", "<x>", "<mask>", "<image>"} <= tokenizer.get_vocab().keys()


@pytest.mark.parametrize("name", ["extra_special_tokens", "additional_special_tokens"])
def test_special_tokens_without_a_name_are_special(name: str, tmp_path: Path) -> None:
    tokenizer = same(saved("byte_level", tmp_path, **{name: ["[extra]", "<think>"]}))
    assert "[extra]" not in tokenizer.decode(tokenizer("[extra]")["input_ids"], skip_special_tokens=True)


def test_special_tokens_can_have_names_of_their_own(tmp_path: Path) -> None:
    assert same(saved("gemma", tmp_path, extra_special_tokens={"image_token": "<image>"})).special_tokens_map["image_token"]


def test_folders_of_older_versions_are_the_same(tmp_path: Path) -> None:
    saved("gemma", tmp_path, bos_token=None, chat_template=TEMPLATE)
    token = {"content": "<s>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    change(tmp_path / "special_tokens_map.json", {"bos_token": token, "eos_token": "<eot>", "mask_token": "<mask>"})
    change(tmp_path / "added_tokens.json", {"<plain>": 301, "<mask>": 300})
    tokenizer = same(tmp_path)
    assert tokenizer.special_tokens_map["eos_token"] == "<eot>"


def test_tokenizers_may_read_special_tokens_as_text(tmp_path: Path) -> None:
    assert 2 not in same(saved("byte_level", tmp_path, split_special_tokens=True))("a</s>")["input_ids"]


def test_truncation_and_padding_in_the_file_are_not_applied(tmp_path: Path) -> None:
    tokenizer = text_tokenizer("gemma").backend_tokenizer.from_str(text_tokenizer("gemma").backend_tokenizer.to_str())
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16, pad_token="<pad>", pad_id=SPECIAL.index("<pad>"))
    saved("gemma", tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert len(same(tmp_path)("the cat")["input_ids"]) == len(text_tokenizer("gemma")("the cat")["input_ids"])


def test_chat_templates_in_files_precede_that_of_the_configuration(tmp_path: Path) -> None:
    saved("gemma", tmp_path, chat_template="configured {{ messages }}")
    assert same(tmp_path).chat_template == "configured {{ messages }}"
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    assert same(tmp_path).chat_template == TEMPLATE


def test_the_default_of_several_chat_templates_is_used(tmp_path: Path) -> None:
    templates = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": TEMPLATE}]
    saved("gemma", tmp_path, chat_template=templates)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = FileTokenizer.from_folder(tmp_path)
    assert ours.chat_template == theirs.get_chat_template() == TEMPLATE
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("rag")
    assert FileTokenizer.from_folder(tmp_path).chat_template == AutoTokenizer.from_pretrained(tmp_path).get_chat_template()


@pytest.mark.parametrize("name", ["lm", "rm"])
def test_a_server_engine_finds_the_end_tokens_and_the_vocabulary(name: str) -> None:
    found = ModelFiles.find(str(TINY / name), [], "lm")
    assert found is not None
    assert isinstance(found.tokenizer, FileTokenizer)
    assert (*found.end_ids, found.vocabulary) == (0, 4096)


def test_a_tokenizer_of_transformers_is_used_as_it_is() -> None:
    tokenizer = text_tokenizer("gemma")
    found = ModelFiles.find(tokenizer, [], "lm")
    assert found is not None
    assert found.tokenizer is tokenizer
    assert (*found.end_ids, found.vocabulary) == (2, len(tokenizer))


def test_end_tokens_of_the_generation_configuration_precede_the_tokenizer(tmp_path: Path) -> None:
    saved("gemma", tmp_path)
    change(tmp_path / "generation_config.json", {"eos_token_id": [2, 5]})
    change(tmp_path / "config.json", {"text_config": {"vocab_size": 999}, "cards_entropy_threshold": 2.5})
    found = ModelFiles.find(str(tmp_path), [], "lm")
    assert found is not None
    assert (*sorted(found.end_ids), found.vocabulary, found.config["cards_entropy_threshold"]) == (2, 5, 999, 2.5)


def test_a_folder_without_tokenizer_json_is_converted_by_transformers_or_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat"]))
    change(tmp_path / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})
    change(tmp_path / "config.json", {"model_type": "bert"})
    found = ModelFiles.find(str(tmp_path), [], "lm")
    assert found is not None
    assert isinstance(found.tokenizer, PreTrainedTokenizerBase)
    assert found.tokenizer("the cat")["input_ids"] == [2, 5, 6, 3]
    monkeypatch.setattr("cards.errors.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"no tokenizer\.json.*pip install 'cards-decoding\[local\]'"):
        ModelFiles.find(str(tmp_path), [], "lm")


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SettingError, match=r"No tokenizer was found.*tokenizer\.json is damaged"):
        ModelFiles.find(str(tmp_path), [], "lm")
