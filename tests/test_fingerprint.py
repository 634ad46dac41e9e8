"""Tokenizers are the same if they give the same ids, wherever they come from; finding out is cheap where files are the same."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from cards.backends.files import TINY, ModelFolder
from cards.backends.files import load_tokenizer as load_from
from cards.fingerprint import Fingerprint, fingerprint

TOKENIZER = TINY / "tokenizer"


def load_tokenizer(folder: Path) -> Any:
    return load_from(ModelFolder(folder.name, folder, frozenset(path.name for path in folder.iterdir())))


def test_tokenizers_of_the_same_file_are_equal_without_a_look_at_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (fingerprint(load_tokenizer(TINY / name)) for name in ("lm", "rm"))
    monkeypatch.setattr(Fingerprint, "canonical", property(lambda self: pytest.fail("the vocabulary was compared")))
    assert one is not other
    assert one == other
    assert hash(one) == hash(other)


def test_the_same_vocabulary_in_another_file_is_equal(tmp_path: Path) -> None:
    shutil.copytree(TOKENIZER, tmp_path / "copy")
    file = tmp_path / "copy" / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    one, other = fingerprint(load_tokenizer(TOKENIZER)), fingerprint(load_tokenizer(tmp_path / "copy"))
    assert one.file != other.file
    assert one == other
    assert one == fingerprint(AutoTokenizer.from_pretrained(TOKENIZER))  # made without a hash of its file


def test_a_changed_vocabulary_or_rule_is_another() -> None:
    known = fingerprint(load_tokenizer(TOKENIZER))
    larger = AutoTokenizer.from_pretrained(TOKENIZER)
    larger.add_tokens(["<another>"])
    assert known != fingerprint(larger)
    other = AutoTokenizer.from_pretrained(TOKENIZER)
    other.backend_tokenizer.pre_tokenizer = None
    assert known != fingerprint(other)
    assert known != "a name"


def test_it_is_made_once_and_can_be_sent_to_another_process() -> None:
    tokenizer = load_tokenizer(TOKENIZER)
    assert fingerprint(tokenizer) is fingerprint(tokenizer)
    assert pickle.loads(pickle.dumps(fingerprint(tokenizer))) == fingerprint(tokenizer)
