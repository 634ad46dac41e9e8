"""A back end of cards: `letters:abc` is a model that writes these letters at random."""

from __future__ import annotations

from typing import Any

from cards.engines.mock import MockEngine
from cards.errors import MismatchError
from cards.rewards.base import Reward


def load_engine(name: str, **options: Any) -> MockEngine:
    letters = name.partition(":")[2]
    tokens = [*letters, " ", "."]
    return MockEngine(lambda ids: [1 / len(tokens)] * len(tokens), tokens, end=".", name=name)


def load_reward(name: str, **options: Any) -> Reward:
    raise MismatchError(f"{name!r} is no reward model: letters only write.")
