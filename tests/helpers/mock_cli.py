"""The command with a mock model, so that most of these tests load no weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import cards.cli
import cards.cli.models
from cards.engines.mock import MockEngine
from cards.events import Message, Prompt
from cards.rewards.function import FunctionReward

VOCABULARY = ["</s>", " I", " like", " it", " a", " lot", ".", "\n"]


def chances(ids: tuple[int, ...]) -> list[float]:
    """Return next-token probabilities, some sharp and some flat; the response can end."""
    sure = 2 * (ids[-1] if ids else 0) % 7 + 1
    return [0.04] + [0.75 if i == sure and len(ids) % 3 else 0.12 for i in range(1, 8)]


def likes(prompt: str, response: str) -> float:
    return response.count("like") - 0.1 * len(response.split())


class Engine(MockEngine):
    """A mock engine that records its prompts."""

    prompts: list[Prompt]
    given: str | Sequence[Message] = ""

    def encode(self, prompt: str | Sequence[Message]) -> Prompt:
        self.given = prompt
        self.prompts.append(super().encode(prompt))
        return self.prompts[-1]


@dataclass
class Cards:
    """Runs the command; `loaded` are the loader's calls."""

    engine: Engine
    reward: FunctionReward
    loaded: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __call__(self, *arguments: str, input: str | None = None) -> Result:  # noqa: A002
        return CliRunner().invoke(cards.cli.app, arguments, input=input)

    def load_engine(self, name: str, **options: Any) -> MockEngine:
        self.loaded.append((name, options))
        if name in ("tiny-draft", "tiny-aligned"):  # a model that a setting names
            return MockEngine(chances, VOCABULARY, end="</s>")
        self.engine.name = name
        return self.engine

    def load_reward(self, name: str, **options: Any) -> FunctionReward:
        self.loaded.append((name, options))
        return self.reward


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Cards:
    engine = Engine(chances, VOCABULARY, end="</s>")
    engine.prompts = []
    made = Cards(engine, FunctionReward(likes, target=1.0))
    monkeypatch.setattr("cards.placement.load_engine", made.load_engine)
    monkeypatch.setattr("cards.placement.load_reward", made.load_reward)
    for name in ("check_engine", "check_reward"):
        monkeypatch.setattr(f"cards.placement.{name}", lambda *_, **__: [])
    for module in ("cards.registry", "cards.rewards.engines"):
        monkeypatch.setattr(f"{module}.load_engine", lambda name, **_: MockEngine(chances, VOCABULARY, end="</s>"))
    monkeypatch.setattr("cards.registry.load_reward", made.load_reward)
    return made


def plain(text: str) -> str:
    """Return the text without colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
