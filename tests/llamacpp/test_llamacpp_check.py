"""A GGUF file that cannot be used is refused before any model is loaded."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.gguf_files import write_gguf

from cards.backends.llamacpp import library as library_module
from cards.backends.llamacpp import plan as plan_module
from cards.backends.llamacpp.model import GGUFModel
from cards.engines.loader import check_engine
from cards.errors import CardsError, MissingExtraError
from cards.placement import Placement
from cards.registry import load_engine, load_reward
from cards.rewards.loader import check_reward

LM = "the language model itself"
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 4096}, "context must be between 2 and 512"),
        ({"slots": 2, "n_ctx": 2048}, "context must be between 2 and 512"),
        ({"slots": 300}, "slots must be at most 256"),
        ({"slots": 32, "n_batch": 8}, "n_batch must be at least the number of slots"),
        ({"slots": 2, "n_ctx": 512, "context": 100}, "context is 100, but n_ctx"),
        ({"slots": 2, "n_seq_max": 3}, "slots is 2, but n_seq_max is 3"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"device": "cuda:1"}, "'cuda:1' cannot be used"),
        ({"dtype": "float8"}, "Unknown dtype 'float8'"),
        ({"flash_attn": "maybe"}, "flash_attn must be yes or no"),
        ({"n_ubatch": -1}, "n_ubatch must be at least 0"),
        ({"n_batch": "x"}, "n_batch must be a whole number"),
        ({"type_k": "q9"}, "Unknown value of type_k: 'q9'"),
        ({"type_v": "q8_0", "flash_attn": False}, "requires flash_attn"),
        ({"n_cxt": 5}, r"Did you mean 'n_ctx'"),
        ({"lora": "missing.gguf"}, "LoRA adapter must be a GGUF file"),
        ({"lora": LM}, "is not a LoRA adapter"),
    ],
)
@pytest.mark.parametrize("kind", ["lm", "rm"])
def test_an_option_out_of_range_is_refused_before_loading(
    options: dict[str, Any], message: str, kind: str, lm_file: str, rm_file: str
) -> None:
    given = {name: lm_file if value == LM else value for name, value in options.items()}
    for function in (check_engine, load_engine) if kind == "lm" else (check_reward, load_reward):
        with pytest.raises(CardsError, match=message):
            function(lm_file if kind == "lm" else rm_file, **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [("output=1", "output must be between 0 and 0"), ("output=x", "Unknown reward output"), ("form=x", "form must be")],
)
def test_options_of_a_reward_are_checked_before_loading(options: str, message: str, rm_file: str) -> None:
    for function in (check_reward, load_reward):
        with pytest.raises(CardsError, match=message):
            function(f"{rm_file}?{options}")


@pytest.mark.parametrize("kind", ["lm", "rm"])
@pytest.mark.parametrize(
    ("free", "message"),
    [(2**20, r"needs 0\.0 GB, but 0\.0 GB of memory are free"), (2**27, r"32 slots of 512 tokens need 0\.")],
)
def test_a_model_or_a_cache_that_does_not_fit_into_memory_is_refused_before_loading(
    free: int, message: str, kind: str, lm_file: str, rm_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "memory_at_hand", lambda: free)
    options: dict[str, Any] = {"slots": 32, "dtype": "float32"}
    for function in (check_engine, load_engine) if kind == "lm" else (check_reward, load_reward):
        with pytest.raises(CardsError, match=message):
            function(lm_file if kind == "lm" else rm_file, **options)


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
