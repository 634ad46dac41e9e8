"""Shared by all tests: one thread for torch, and small models that are created once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import torch
from helpers.random_models import Pair, letter_engine

from cards.backends.local.engine import TransformersEngine

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def same_dtype_on_every_cpu() -> Iterator[None]:
    """Load half-precision weights in float32 with `auto`, also on CPUs with bfloat16 instructions."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cards.backends.configuration.has_bfloat16", lambda: False)
        yield


@pytest.fixture(scope="session")
def gpt2_float64() -> Pair:
    """A pair in float64, so that rounding cannot change a decision."""
    return Pair.make("gpt2", torch.float64)


@pytest.fixture(scope="session")
def llama_float64() -> Pair:
    return Pair.make("llama", torch.float64)


@pytest.fixture(scope="session")
def llama_float32() -> Pair:
    return Pair.make("llama", torch.float32)


@pytest.fixture
async def letters() -> AsyncIterator[TransformersEngine]:
    """A real engine whose responses never end by themselves."""
    engine = letter_engine(slots=4)
    yield engine
    await engine.aclose()
