"""Loaders of models in vLLM, by name: `vllm:NAME`."""

from __future__ import annotations

from typing import Any

from cards.backends.vllm.engine import VLLMEngine
from cards.backends.vllm.rewards import VLLMReward


def load_engine(name: str, **options: Any) -> VLLMEngine:
    """Load an LM; see VLLMEngine.load."""
    return VLLMEngine.load(name.removeprefix("vllm:"), **options)


def load_reward(name: str, **options: Any) -> VLLMReward:
    """Load a reward model; see VLLMReward.load."""
    return VLLMReward.load(name.removeprefix("vllm:"), **options)
