"""The embedded LMs as GGUF files, and engines that run them. Skipped where llama-cpp-python is not installed."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path

import gguf
import pytest
from helpers.gguf_files import write_gguf

from cards.backends.llamacpp.engine import LlamaEngine
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward


@pytest.fixture(scope="session", autouse=True)
def _needs_llama_cpp() -> None:
    if find_spec("llama_cpp") is None:
        (pytest.fail if os.environ.get("CARDS_ALL_TESTS") else pytest.skip)("llama-cpp-python is not installed.")


@pytest.fixture(scope="session")
def gguf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the embedded LMs: lm.gguf, draft.gguf and aligned.gguf in float32, and lm-q8_0.gguf."""
    folder = tmp_path_factory.mktemp("gguf")
    for name in ("lm", "draft", "aligned"):
        write_gguf(name, folder / f"{name}.gguf")
    write_gguf("lm", folder / "lm-q8_0.gguf", gguf.GGMLQuantizationType.Q8_0)
    return folder


@pytest.fixture(scope="session")
def lm_file(gguf_folder: Path) -> str:
    return str(gguf_folder / "lm.gguf")


@pytest.fixture
async def engine(lm_file: str) -> AsyncIterator[LlamaEngine]:
    """The embedded LM with a cache and attention in float32."""
    engine = LlamaEngine.load(lm_file, dtype="float32", threads=1)
    yield engine
    await engine.aclose()


@pytest.fixture(scope="session")
def tiny() -> TransformersEngine:
    return TransformersEngine.load("tiny", dtype="float32")


@pytest.fixture(scope="session")
def tiny_reward() -> ClassifierReward:
    return ClassifierReward.load("tiny", dtype="float32")
