"""A GGUF file that cannot be used is refused before any model is loaded."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.gguf_files import write_gguf

from cards.backends.llamacpp import library as library_module
from cards.backends.llamacpp.model import GGUFModel
from cards.errors import CardsError, MissingExtraError
from cards.placement import Placement

ARCHITECTURE = b"\x05\x00\x00\x00\x00\x00\x00\x00llama"
PROBLEMS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "other": (lambda data: b"PK" + data[2:], "is not a GGUF file"),
    "header": (lambda data: data[:20000], "damaged"),
    "cut": (lambda data: data[:-1000], "incomplete"),
    "architecture": (
        lambda data: data.replace(ARCHITECTURE, ARCHITECTURE[:-1] + b"x", 1),
        "unknown model architecture: 'llamx'",
    ),
    "vocabulary": (
        lambda data: data.replace(b"\x04\x00\x00\x00\x00\x00\x00\x00gpt2", b"\x04\x00\x00\x00\x00\x00\x00\x00none"),
        "no vocabulary",
    ),
}


@pytest.fixture(autouse=True)
def _loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any) -> None:
        raise AssertionError("The check has loaded a model.")

    monkeypatch.setattr(GGUFModel, "__init__", load)


@pytest.mark.parametrize("option", ["--model", "--draft"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_damaged_file_is_refused_before_loading(problem: str, option: str, lm_file: str, tmp_path: Path) -> None:
    change, reason = PROBLEMS[problem]
    path = tmp_path / "model.gguf"
    path.write_bytes(change(Path(lm_file).read_bytes()))
    with pytest.raises(CardsError, match=reason):
        Placement(draft=str(path) if option == "--draft" else None).check(
            {"--model": lm_file if option == "--draft" else str(path)}
        )


def test_missing_files_and_parts_are_refused_before_loading(lm_file: str, tmp_path: Path) -> None:
    with pytest.raises(CardsError, match="Did you mean"):
        Placement().check({"--model": lm_file.replace("lm.gguf", "ln.gguf")})
    write_gguf("lm", tmp_path / "lm.gguf", split=20)
    first, second, _ = sorted(map(str, tmp_path.iterdir()))
    assert Placement().check({"--model": second}) == []
    Path(second).unlink()
    with pytest.raises(CardsError, match="lacks 1 of 3 parts: lm-00002-of-00003"):
        Placement().check({"--model": first})


def test_an_lm_and_a_reward_model_are_not_mistaken_for_one_another_before_loading(lm_file: str, rm_file: str) -> None:
    assert Placement().check({"--model": lm_file, "--reward": rm_file}) == []
    assert Placement(draft=lm_file).check({"--model": lm_file, "--reward": f"implicit:{lm_file},{lm_file}"}) == []
    with pytest.raises(CardsError, match=r"has no classification head.*implicit:"):
        Placement().check({"--model": lm_file, "--reward": lm_file})
    with pytest.raises(CardsError, match=r"cannot be used as a language model.*--reward"):
        Placement().check({"--model": rm_file})


def test_without_the_library_a_command_says_how_to_install_it(lm_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    library_module.library.cache_clear()
    try:
        with pytest.raises(MissingExtraError, match=r"cards-decoding\[llamacpp\].*compiles.*cmake.*wheels"):
            Placement().check({"--model": lm_file})
    finally:
        library_module.library.cache_clear()
