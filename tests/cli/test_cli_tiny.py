"""The command with the embedded models, on a real terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from helpers.mock_cli import plain
from typer.testing import CliRunner

import cards
import cards.cli

QUESTION = "What did you think of the new Star Wars film?"


def test_json_equals_the_library_s_result() -> None:
    ran = CliRunner().invoke(cards.cli.app, ["generate", QUESTION, "--json", "--max-tokens", "32", "--target", "1"])
    assert ran.exit_code == 0, ran.stderr
    printed = json.loads(ran.stdout)
    result = cards.Decoder("tiny", reward="tiny", method=cards.CARDS(target=1.0))(
        [{"role": "user", "content": QUESTION}], max_tokens=32
    )
    same = ("text", "token_ids", "finish_reason", "seed", "method")
    assert [printed[name] for name in same] == [json.loads(result.to_json())[name] for name in same]
    assert printed["reward"] == pytest.approx(result.reward, abs=1e-3)
    assert printed["usage"]["rm_calls"] >= printed["usage"]["candidates"] > 0


def test_the_embedded_models_need_no_setting() -> None:
    ran = CliRunner().invoke(cards.cli.app, ["generate", QUESTION, "--max-tokens", "16"])
    assert ran.exit_code == 0, ran.stderr
    assert ran.stdout.strip()


class Terminal:
    """A process on its own pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self.end, theirs = pty.openpty()
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
        command = [sys.executable, "-c", "from cards.cli import main; main()", *arguments]
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        self.seen = ""

    def until(self, text: str, seconds: float = 120) -> str:
        """Read until the text appears and return the output without colours."""
        limit, read = time.monotonic() + seconds, ""
        while text not in plain(read):
            assert time.monotonic() < limit, f"{text!r} did not come in {seconds} s, but {plain(self.seen)!r}"
            if select.select([self.end], [], [], 1)[0]:
                read += os.read(self.end, 65536).decode()
                self.seen += read
        return plain(read)

    def type(self, text: str) -> None:
        os.write(self.end, text.encode())

    def ctrl_c(self) -> None:
        os.kill(self.process.pid, signal.SIGINT)


@pytest.fixture
def terminal() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for one in opened:
        one.process.kill()
        one.process.wait()
        os.close(one.end)


def test_a_chat_at_a_terminal_outlives_ctrl_c(terminal: list[Terminal]) -> None:
    # a target out of reach makes the answer slow enough to interrupt
    slow = ["--boundary", "fixed:2", "--target", "30", "--max-rejections", "1000", "--width", "1", "--acceptance", "hard"]
    one = Terminal("generate", "--max-tokens", "100", *slow)
    terminal.append(one)
    assert "loading tiny" in one.until("> ")
    one.type(QUESTION + "\n")
    one.until("candidate")
    one.ctrl_c()
    assert "interrupted · 0 tokens kept" in one.until("\n> ")
    one.type("/exit\n")
    assert one.process.wait(30) == 0
