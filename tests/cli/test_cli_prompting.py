"""Studies give their model the system message and the template variables of the command, and record both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.mock_cli import Cards

from cards.errors import PromptError
from cards.events import Message, Prompt
from cards.prompts import Chat, FormOptions
from cards.study.bench.plan import read
from cards.study.models import Models
from cards.study.prompts import PromptRecord

SYSTEM = Message(role="system", content="Be brief.")
OPTIONS = ("--system", "Be brief.", "--chat-template-kwargs", '{"enable_thinking": false}')
SHORT = ("--max-tokens", "6")
COMMANDS = {
    "bench": ("bench", "--prompts", "in.txt", "-m", "vanilla", "--out", "out.jsonl", *SHORT),
    "evaluate": ("evaluate", "--prompts", "in.txt", "-m", "vanilla", "-m", "best-of-n:n=2", "--gold", "none", *SHORT),
    "calibrate": (
        "calibrate",
        "--prompts",
        "in.txt",
        "--answers",
        "2",
        "--nodes",
        "1",
        "--probes",
        "1",
        "--max-cost",
        "90",
        *SHORT,
    ),
    "diagnose": ("diagnose", "--prompts", "in.txt", "--answers", "2", *SHORT),
    "preferences": ("preferences", "--prompts", "in.txt", "--out", "out.jsonl", *SHORT),
}


@pytest.fixture
def given(cli: Cards, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str | Sequence[Message]]:
    """The prompts that the engine got."""
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("I like it\nWell?\nA lot?\n", encoding="utf-8")
    prompts: list[str | Sequence[Message]] = []
    encode = cli.engine.encode

    def recorded(prompt: str | Sequence[Message]) -> Prompt:
        prompts.append(prompt)
        return encode(prompt)

    monkeypatch.setattr(cli.engine, "encode", recorded)
    return prompts


@pytest.mark.parametrize("command", COMMANDS)
def test_all_prompts_have_them(cli: Cards, given: list[str | Sequence[Message]], command: str) -> None:
    ran = cli(*COMMANDS[command], *OPTIONS)
    assert ran.exit_code in (0, command == "calibrate"), ran.stderr  # too few prompts confirm no setting
    chats = [prompt for prompt in given if not isinstance(prompt, str)]
    assert len(chats) >= 3
    for chat in chats:
        assert isinstance(chat, Chat)
        assert (chat[0], chat[-1]["role"], chat.chat_template_kwargs) == (SYSTEM, "user", {"enable_thinking": False})
    for text in (prompt for prompt in given if isinstance(prompt, str)):  # diagnose compares with a dialogue
        assert command == "diagnose"
        assert text.startswith("Be brief.")


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "diagnose"])
def test_a_run_with_others_is_not_resumed(cli: Cards, given: list[str | Sequence[Message]], command: str) -> None:
    assert cli(*COMMANDS[command], *OPTIONS).exit_code in (0, command == "calibrate")
    for options, named in ((OPTIONS[:2], "chat_template_kwargs"), (OPTIONS[2:], "system"), (("--system", "Hi"), "system")):
        ran = cli(*COMMANDS[command], *options)
        assert ran.exit_code == 2
        assert f"{named} '" in ran.stderr
        assert "now" in ran.stderr
    assert cli(*COMMANDS[command], *OPTIONS).exit_code in (0, command == "calibrate")


@pytest.mark.parametrize("command", COMMANDS)
def test_raw_text_has_neither(cli: Cards, given: list[str | Sequence[Message]], command: str) -> None:
    if command == "evaluate":
        Path("plan.toml").write_text('form = "raw"')
        ran = cli(*COMMANDS[command], *OPTIONS, "--plan", "plan.toml")
    else:
        ran = cli(*COMMANDS[command], *OPTIONS, "--form", "raw")
    assert ran.exit_code == 2
    assert "form 'raw' use no chat template" in ran.stderr
    assert not cli.loaded


def test_a_plan_has_variables_as_a_table(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text('system = "Be brief."\n[chat_template_kwargs]\nenable_thinking = false\n')
    plan = read(tmp_path / "plan.toml")
    assert (plan.system, plan.arguments) == ("Be brief.", {"enable_thinking": False})


def test_the_report_of_a_bench_has_them(cli: Cards, given: list[str | Sequence[Message]]) -> None:
    assert cli(*COMMANDS["bench"], *OPTIONS).exit_code == 0
    made = json.loads(Path("out.json").read_text())["made_with"]
    assert (made["system"], json.loads(made["chat_template_kwargs"])) == ("Be brief.", {"enable_thinking": False})


def test_prompts_that_no_model_can_read_are_told_as_such(cli: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [PromptRecord(i, str(i), "Hi") for i in range(3)]
    models = Models(cli.engine)

    def refuse(prompt: object) -> Prompt:
        raise PromptError("The chat template does not use 'enable_thinkin'.")

    monkeypatch.setattr(cli.engine, "encode", refuse)
    with pytest.raises(PromptError, match="enable_thinkin"):
        models.fitting(records, FormOptions(), 8)
    monkeypatch.setattr(cli.engine, "chats", False)
    with pytest.raises(PromptError, match="no chat template"):
        models.fitting(records, FormOptions(system="Hi"), 8)
