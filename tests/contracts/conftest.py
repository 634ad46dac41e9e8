"""The embedded models, loaded once."""

from __future__ import annotations

import pytest

from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward


@pytest.fixture(scope="session")
def tiny() -> TransformersEngine:
    return TransformersEngine.load("tiny")


@pytest.fixture(scope="session")
def tiny_reward() -> ClassifierReward:
    return ClassifierReward.load("tiny")
