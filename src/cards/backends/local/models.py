"""Loaders of models in this process, by name."""

from __future__ import annotations

from typing import Any

from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward


def load_engine(name: str, **options: Any) -> TransformersEngine:
    """Load `tiny` or another embedded LM, a folder, or a Hugging Face name; see TransformersEngine.load."""
    return TransformersEngine.load(name, **options)


def load_reward(name: str, **options: Any) -> ClassifierReward:
    """Load `tiny` or another embedded reward model, a folder, or a Hugging Face name; see ClassifierReward.load."""
    return ClassifierReward.load(name, **options)
