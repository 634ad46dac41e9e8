"""vLLM with the embedded models, and the transformers engine that it must equal; skipped where vLLM is not installed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.engines.base import Engine
from cards.rewards.base import Reward

os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # cores are not ours alone
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one is enough for models as small as these, and two wait for each other
collect_ignore_glob = [] if find_spec("vllm") else ["*"]
OF_LIBRARIES = [
    "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning",
    "ignore:Exception ignored in. <function Context.__del__:pytest.PytestUnraisableExceptionWarning",  # vLLM's sockets
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(900))  # vLLM takes its time to start
            for warning in OF_LIBRARIES:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    from cards.backends.vllm.engine import VLLMEngine

    engine = VLLMEngine.load("tiny", slots=24, enforce_eager=True)
    yield engine
    asyncio.run(engine.aclose())


@pytest.fixture(scope="session")
def reward() -> Iterator[Reward]:
    from cards.backends.vllm.rewards import VLLMReward

    reward = VLLMReward.load("tiny", slots=24, enforce_eager=True)
    yield reward
    asyncio.run(reward.aclose())


@pytest.fixture(scope="session")
def twin() -> TransformersEngine:
    return TransformersEngine.load("tiny", slots=24)


@pytest.fixture(scope="session")
def twin_reward() -> ClassifierReward:
    return ClassifierReward.load("tiny")
