"""The commands and programs of the README run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from helpers.mock_cli import Cards

README = (Path(__file__).parents[2] / "README.md").read_text()
COMMANDS = re.findall(r"^\$ (.+)$", README.replace(" \\\n", " "), re.M)
PROGRAMS = "\n".join(re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S))


@pytest.mark.parametrize("line", COMMANDS)
def test_commands(cli: Cards, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before, _, command = line.rpartition(" | ")
    program, *arguments = shlex.split(command)
    assert program == "cards"
    ran = cli(*arguments, input=before.removeprefix("echo ") or "Typed at the terminal.")
    assert ran.exit_code == 0, ran.stderr


def test_programs(cli: Cards, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("cards.decoder.load_engine", cli.load_engine)
    monkeypatch.setattr("cards.decoder.load_reward", cli.load_reward)
    monkeypatch.setattr("cards.decoder.HIGH_FALLBACK", 1.0)  # these rewards are not the model's
    exec(PROGRAMS, {})
    assert "lm_decoded_tokens" in capsys.readouterr().out
