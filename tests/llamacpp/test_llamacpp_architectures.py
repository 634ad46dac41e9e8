"""Models with sliding windows and hybrid models give the logits of transformers: along a text, after forks and rollbacks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers as hf
from helpers.families import small_lm
from helpers.gguf_files import write_mamba
from helpers.gguf_random import embedded_config, write_model

from cards.backends.llamacpp import plan as plan_module
from cards.backends.llamacpp.cache import LlamaCache
from cards.backends.llamacpp.engine import LlamaEngine
from cards.backends.llamacpp.library import library
from cards.backends.llamacpp.plan import Plan
from cards.engines.base import Engine
from cards.engines.slots import Slots
from cards.errors import SettingError
from cards.testing import EngineContract

WINDOW = 16
ERRORS = {"gemma3": 5e-3, "lfm2": 1e-4}  # of logits near 0.3; llama.cpp takes GELU, which Gemma uses, from a table in float16
LAYERS = ["conv", "full_attention", "conv"]
MODELS: dict[str, tuple[type, dict[str, Any]]] = {
    "gemma3": (hf.Gemma3TextConfig, {"num_hidden_layers": 6, "head_dim": 16, "query_pre_attn_scalar": 16}),
    "lfm2": (hf.Lfm2Config, {"layer_types": LAYERS, "block_auto_adjust_ff_dim": False}),
}
MODELS["gemma3"][1].update(sliding_window=WINDOW, initializer_range=0.1)


def make(name: str, folder: Path, **options: Any) -> tuple[Any, LlamaEngine]:
    """Return a random model in transformers, and its GGUF file in an engine."""
    config, changes = MODELS[name]
    shared = {"vocab_size": embedded_config()["vocab_size"], "max_position_embeddings": 128}
    model = small_lm(config, shared | changes)
    file = write_model(folder / f"{name}.gguf", model)
    return model, LlamaEngine.load(str(file), dtype="float32", threads=1, **options)


@torch.inference_mode()
def logits(model: Any, text: list[int]) -> Any:
    return model(torch.tensor([text]), use_cache=False).logits[0].numpy()


@pytest.mark.parametrize("name", MODELS)
async def test_logits_equal_transformers_after_forks_and_rollbacks(name: str, tmp_path: Path) -> None:
    model, engine = make(name, tmp_path, slots=4, context=96)
    slots: Slots = engine.scheduler.slots
    text = np.random.default_rng(1).integers(4, model.config.vocab_size, 80).tolist()

    def check(text: list[int], reads: int | None = None) -> int:
        """Compare the logits after the new tokens, of which there are `reads`."""
        slot, held = slots.acquire(text, len(text) - 1) or pytest.fail("an idle slot is there")
        assert reads is None or len(text) - held == reads
        new = text[held:]
        found = slots.read([(slot, new)], [len(new)])
        assert np.abs(found - logits(model, text)[-len(new) :]).max() < ERRORS[name]
        return slot

    def checks() -> None:
        slots.release(check(text[:60]))  # beyond the window
        busy = [check([*text[:60], 30 + i], 1) for i in range(3)]  # forks
        for slot in busy:
            slots.release(slot)
        slots.release(check([*text[:60], 31, *text[61:70]], 9))
        again = 1 if slots.cache.rolls_back else None  # models with state read the text again
        slots.release(check([*text[:50], 40], again))  # back by more than half a window
        slots.release(check([*text[:30], 40, 41], None if again is None else 2))  # and by more than a window
        slots.release(check(text))

    engine.scheduler.worker.call(checks)
    await engine.aclose()


async def test_a_text_longer_than_the_window_depends_on_it(tmp_path: Path) -> None:
    """The fixture can show a wrong window: without it, logits differ."""
    model, engine = make("gemma3", tmp_path, slots=1)
    text = list(range(10, 60))
    wanted = logits(model, text)
    for layer in model.model.layers:
        layer.self_attn.sliding_window = None
    model.config.sliding_window = 128
    changed = np.abs(logits(model, text) - wanted).max(1)
    assert changed[: WINDOW - 1].max() < 1e-4
    assert changed[WINDOW + 4 :].min() > 1e-2
    await engine.aclose()


@pytest.mark.parametrize("name", ["lfm2", "mamba"])
async def test_the_memory_of_states_and_keys_is_counted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(write_mamba(tmp_path / "mamba.gguf")) if name == "mamba" else make(name, tmp_path, slots=1)[1].name
    engine = LlamaEngine.load(file, threads=1, slots=3, context=64, dtype="float32")
    slots: Slots = engine.scheduler.slots
    text = range(10, 50)

    def state_size() -> int:
        slot, _ = slots.acquire(text, 0) or pytest.fail("an idle slot is there")
        slots.read([(slot, text)])
        return int(library().llama_state_seq_get_size(cast(LlamaCache, slots.cache).context, slot))

    size = engine.scheduler.worker.call(state_size)
    await engine.aclose()
    plan = Plan.of(file, dtype="float32")
    per_token, per_row = plan._bytes_per_token(), plan._bytes_per_row()
    assert per_row > 0
    assert 0.9 * size < len(text) * per_token + per_row <= size  # the size includes the numbers of the tokens
    monkeypatch.setattr(plan_module, "memory_at_hand", lambda: int(200 * (64 * per_token + per_row)) - 1)
    with pytest.raises(SettingError, match="200 slots of 64 tokens need"):
        Plan.of(file, slots=200, context=64, dtype="float32")
    Plan.of(file, slots=199, context=64, dtype="float32")


class TestSlidingWindow(EngineContract):
    prompts = ("What did you think of the new Star Wars film? I think that it is", "Once upon a time")

    @pytest.fixture
    async def engine(self, tmp_path: Path) -> AsyncIterator[Engine]:
        _, engine = make("gemma3", tmp_path)
        yield engine
        await engine.aclose()


class TestHybrid(EngineContract):
    """A model with layers of attention and layers with state, which never goes back."""

    prompts = ("What did you think of the new Star Wars film? I think that it is", "Once upon a time")

    @pytest.fixture
    async def engine(self, tmp_path: Path) -> AsyncIterator[Engine]:
        _, engine = make("lfm2", tmp_path)
        assert not engine.scheduler.slots.cache.rolls_back
        yield engine
        await engine.aclose()
