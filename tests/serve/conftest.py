"""Servers that several tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers.mock_models import CARDS_IN_THREES, mock
from helpers.running_server import Running, Switch, serving

from cards import CARDS
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward

Pair = tuple[TransformersEngine, ClassifierReward]


@pytest.fixture(scope="session")
def embedded() -> Pair:
    return TransformersEngine.load("tiny"), ClassifierReward.load("tiny")


@pytest.fixture(scope="session")
def tiny(embedded: Pair) -> Iterator[Running]:
    """The embedded pair behind a server."""
    with serving(*embedded, CARDS(), limit_tokens=64) as running:
        yield running


@pytest.fixture
def reward() -> Switch:
    return Switch()


@pytest.fixture
def mocked(reward: Switch) -> Iterator[Running]:
    """A mock whose answers never end, one answer at a time, one request in the queue."""
    with serving(mock(), reward, CARDS_IN_THREES, max_running=2, max_queue=1, limit_body=20_000) as running:
        yield running
        reward.held = False
