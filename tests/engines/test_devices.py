"""A device that does not exist, and one that runs out of memory: said in words, and only those fail who are concerned."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from helpers.random_models import Pair, words

from cards import Decoder
from cards.backends.local.cache import TorchCache
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.loading import resolve_device
from cards.backends.local.readers import LayoutScorer
from cards.errors import BatchError, ModelError, SettingError
from cards.methods import Vanilla

TEXTS = [words([5, 9]), words([12, 3, 40])]


def full(*args: Any, **options: Any) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_a_device_is_picked_with_its_number_or_refused_in_words() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")
    for missing in ("cuda:99", "gpu", "", "hpu"):
        with pytest.raises(SettingError, match=r"cannot be used: .+\. Try 'cpu'\."):
            resolve_device(missing)


def test_models_whose_weights_or_slots_do_not_fit_say_what_to_lower(monkeypatch: Any, llama_float32: Pair) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.Module, "to", full)
        with pytest.raises(SettingError, match="'tiny' does not fit into the memory of cpu"):
            TransformersEngine.load("tiny", device="cpu")
    monkeypatch.setattr(TorchCache, "_allocate", full)
    for make in (llama_float32.engine, llama_float32.reward):  # a reward does not go on without slots then
        with pytest.raises(SettingError, match=r"The cache slots do not fit .* Lower slots or context"):
            make()


def test_a_step_without_memory_fails_its_requests_each_in_words_and_no_later_ones(
    monkeypatch: Any, llama_float32: Pair
) -> None:
    engine = llama_float32.engine(slots=4)
    decoder = Decoder(engine, None, Vanilla())
    expected = [result.token_ids for result in decoder.batch(TEXTS, max_tokens=12)]
    engine.forget()
    with monkeypatch.context() as patched:
        patched.setattr(engine.scheduler.slots.cache, "forward", full)
        with pytest.raises(BatchError) as failed:
            decoder.batch(TEXTS, max_tokens=12)
    first, second = failed.value.errors.values()
    assert isinstance(first, ModelError)
    assert "out of memory in a step" in str(first)
    assert first is not second  # for each has the answer so far of its own request
    assert [result.token_ids for result in decoder.batch(TEXTS, max_tokens=12)] == expected


async def test_rewards_without_memory_fail_in_words_too(monkeypatch: Any, llama_float32: Pair) -> None:
    reward = llama_float32.reward(slots=2)
    monkeypatch.setattr(reward.reader.scheduler.slots.cache, "forward", full)  # type: ignore[union-attr]
    whole = LayoutScorer(llama_float32.rm, reward.combine, None, "head")
    monkeypatch.setattr("cards.backends.local.readers.forward", full)
    for reader in (reward.reader, whole):
        with pytest.raises(ModelError, match="cpu ran out of memory in a step"):
            await asyncio.wait_for(reader.score([[5, 9]]), 30)
