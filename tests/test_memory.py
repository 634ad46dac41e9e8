"""The size of a cache follows the request and the free memory; models and caches that do not fit are refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from helpers.families import small_lm
from helpers.random_models import language_model, reward_model, word_tokenizer
from typer.testing import CliRunner

import cards
import cards.cli
from cards.backends.local import loading, memory
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.memory import weights_size
from cards.backends.local.own_cache import OwnCache
from cards.engines.loader import check_engine
from cards.errors import SettingError
from cards.memory import cache_size, memory_at_hand
from cards.rewards.loader import check_reward

GB = 10**9


@pytest.mark.parametrize(
    ("slots", "context", "longest", "tokens", "expected"),
    [
        (None, None, 8192, None, (32, 2048)),  # unknown memory
        (None, None, 8192, 10**6, (32, 2048)),
        (None, None, 512, 10**6, (32, 512)),  # the model's maximum
        (None, None, 8192, 32 * 2048 / 0.4 - 1, (16, 2048)),  # just too little for 32 slots
        (None, None, 8192, 4 * 2048 / 0.4, (4, 2048)),
        (None, None, 8192, 4 * 2048 / 0.4 - 1, (4, 1024)),  # fewer slots first, then a shorter context
        (None, None, 8192, 4 * 512, (4, 512)),  # the smallest cache may exceed the share, but not the memory
        (8, None, 8192, 8 * 1024 / 0.4, (8, 1024)),
        (None, 8192, 8192, 8 * 8192 / 0.4, (8, 8192)),
        (64, 4096, 8192, 64 * 4096, (64, 4096)),  # requests may use all of the memory
    ],
)
def test_the_size_of_a_cache_is_as_requested_and_otherwise_what_fits(
    slots: int | None, context: int | None, longest: int, tokens: float | None, expected: tuple[int, int]
) -> None:
    per_token = 1000.0
    assert cache_size(slots, context, longest, per_token, None if tokens is None else int(tokens * per_token)) == expected


def test_bytes_that_a_slot_needs_at_any_length_count() -> None:
    free = int(32 * (2048 + 100) * 1000 / 0.4) + 1
    assert cache_size(None, None, 8192, 1000.0, free, 100_000.0) == (32, 2048)
    assert cache_size(None, None, 8192, 1000.0, free - 1000, 100_000.0) == (16, 2048)
    with pytest.raises(SettingError, match=r"8 slots of 512 tokens need 0\.8 GB, but 0\.1 GB"):
        cache_size(8, 512, 8192, 1.0, GB // 10, 1e8)


def state_bytes(model: Any, length: int) -> int:
    """Return the bytes of Jamba's own cache after a text: keys and values, and the states of its Mamba layers."""
    config = model.config
    attention, mamba = (sum(kind == name for kind in config.layers_block_type) for name in ("attention", "mamba"))
    width = config.mamba_expand * config.hidden_size
    keys = 2 * length * config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    return int(4 * (attention * keys + mamba * width * (config.mamba_d_conv + config.mamba_d_state)))


@pytest.mark.parametrize("share", [1.0, 0.999])
def test_slots_with_the_models_own_cache_fit_into_the_memory(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1, "use_mamba_kernels": False}
    model = small_lm(hf.JambaConfig, {**changes, "mamba_d_state": 8})
    needed = 32 * 2 * state_bytes(model, 64)  # as many forks are kept as there are slots
    monkeypatch.setattr(memory, "memory_at_hand", lambda: int(share * needed / 0.4) + 1)
    engine = TransformersEngine(model, word_tokenizer(97), context=64)
    assert type(engine.scheduler.slots.cache) is OwnCache
    assert (engine.rows, engine.context) == (32 if share == 1 else 16, 64)
    monkeypatch.setattr(memory, "memory_at_hand", lambda: needed // 2)
    with pytest.raises(SettingError, match="32 slots of 64 tokens need"):
        TransformersEngine(model, word_tokenizer(97), slots=32, context=64)


@pytest.mark.parametrize(("slots", "context", "size"), [(64, 4096, "64 slots of 4096"), (None, None, "4 slots of 512")])
def test_a_cache_that_does_not_fit_is_refused_with_the_numbers(slots: int | None, context: int | None, size: str) -> None:
    with pytest.raises(SettingError, match=rf"{size} tokens need [\d.]+ GB, but 0\.1 GB of memory are free\. Use fewer"):
        cache_size(slots, context, 8192, 1e6, GB // 10)
    with pytest.raises(SettingError, match="slots must be at least 1, got 0"):
        cache_size(0, context, 8192, 1e6, None)


def test_the_limit_of_a_control_group_counts_without_files_that_can_be_dropped(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:   8000 kB\n")
    assert memory_at_hand(tmp_path) == 8000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    for name, text in (("memory.max", "5000000"), ("memory.current", "4000000"), ("memory.stat", "inactive_file 1500000\n")):
        (group / name).write_text(text)
    assert memory_at_hand(tmp_path) == 2_500_000
    (group / "memory.max").write_text("max")
    assert memory_at_hand(tmp_path) == 8000 * 1024


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, model in (("lm", language_model("llama")), ("rm", reward_model("llama"))):
        model.save_pretrained(folder / name)
        word_tokenizer().save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_size_of_weights_is_that_after_loading(folder: Path, dtype: torch.dtype) -> None:
    parameters = sum(weight.numel() for weight in language_model("llama").parameters())
    assert weights_size((folder / "lm").iterdir(), dtype) == parameters * dtype.itemsize


@pytest.mark.parametrize("kind", ["lm", "rm"])
def test_weights_that_do_not_fit_are_refused_before_they_are_read(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = weights_size((folder / kind).iterdir(), torch.float32)
    load, check = (cards.load_engine, check_engine) if kind == "lm" else (cards.load_reward, check_reward)

    def read(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(loading, "_load", read)
    monkeypatch.setattr(memory, "memory_at_hand", lambda: free - 1)
    for function in (check, load):
        with pytest.raises(
            SettingError, match=r"needs 0\.0 GB, but 0\.0 GB of memory are free\. It is loaded in float32 on cpu"
        ):
            function(str(folder / kind), dtype="float32")
    for enough in (free, None):
        monkeypatch.setattr(memory, "memory_at_hand", lambda enough=enough: enough)
        check(str(folder / kind), dtype="float32")
        with pytest.raises(AssertionError, match="weights were read"):
            load(str(folder / kind), dtype="float32")


def test_the_number_of_slots_and_the_context_are_logged_and_printed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "cards"):
        cards.load_engine(str(folder / "lm"), slots=3, context=64)
    assert "3 slots of 64 tokens" in caplog.text
    command = ["generate", "w2 w3", "--model", str(folder / "lm"), "--method", "vanilla", "--max-tokens", "2", "--slots", "3"]
    ran = CliRunner().invoke(cards.cli.app, command)
    assert ran.exit_code == 0
    assert "3 slots of 128 tokens" in " ".join(ran.stderr.split())
