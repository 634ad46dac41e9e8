"""The embedded models, loaded once."""

from __future__ import annotations

import pytest

from cards import ClassifierReward, TransformersEngine


@pytest.fixture(scope="session")
def tiny() -> TransformersEngine:
    return TransformersEngine.load("tiny")


@pytest.fixture(scope="session")
def tiny_reward() -> ClassifierReward:
    return ClassifierReward.load("tiny")
