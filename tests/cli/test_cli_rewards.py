"""The embedded reward is a default for the embedded models only."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.mock_cli import Cards

import cards
from cards.engines.mock import MockEngine
from cards.errors import SettingError
from cards.placement import reward_for
from cards.registry import make_method

COMMANDS = [
    ["generate", "Well?"],
    ["compare", "Well?", "-m", "vanilla", "-m", "cards"],
    ["batch", "in.jsonl", "out.jsonl"],
    ["bench", "-m", "cards"],
    ["calibrate", "--prompts", "in.jsonl"],
    ["diagnose", "--prompts", "in.jsonl"],
    ["evaluate", "-m", "cards"],
    ["preferences", "--prompts", "in.jsonl", "--out", "out.jsonl"],
    ["serve"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_another_model_needs_a_reward_of_its_own(
    cli: Cards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text('{"prompt": " I like"}\n')
    ran = cli(*command, "--model", "my-model")
    assert ran.exit_code == 2, ran.stderr
    assert "--reward" in ran.stderr
    assert not cli.loaded


def test_a_misspelt_embedded_model_is_suggested(cli: Cards) -> None:
    assert "Did you mean 'tiny'?" in cli("generate", "Well?", "--model", "tinny").stderr


def test_methods_that_need_no_reward_run_without_one(cli: Cards) -> None:
    assert cli("generate", "Well?", "--method", "vanilla", "--model", "my-model", "--max-tokens", "4").exit_code == 0
    assert [name for name, _ in cli.loaded] == ["my-model"]


def test_an_embedded_guide_is_no_default_for_another_model(cli: Cards) -> None:
    ran = cli("generate", "Well?", "--method", "cascade", "--model", "my-model", "--reward", "my-reward")
    assert ran.exit_code == 2
    assert "Choose one for 'my-model' with --guide." in ran.stderr
    assert not cli.loaded
    engine = MockEngine(lambda ids: [0.5, 0.5], ["a", "."], name="my-model")
    with pytest.raises(SettingError, match="guide of method 'cascade'"):
        cards.Decoder(engine, lambda prompt, response: 0.0, "cascade")


@pytest.mark.parametrize(
    ("model", "reward", "expected"),
    [("tiny", None, "tiny"), ("vllm:tiny", None, "tiny"), ("mine", None, "none"), ("mine", "tiny", "tiny"), ("tiny", "r", "r")],
)
def test_a_given_reward_is_used_and_the_default_follows_the_model(model: str, reward: str | None, expected: str) -> None:
    assert reward_for(model, reward, [make_method("vanilla")]) == expected
