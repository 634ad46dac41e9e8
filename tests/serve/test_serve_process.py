"""`cards serve` as a process: it says where it listens, finishes what runs when told to end, and ends well."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from helpers.mock_models import CARDS_IN_THREES, mock
from helpers.running_server import Switch, assert_free, serving, until
from typer.testing import CliRunner

import cards.cli

COMMAND = [sys.executable, "-m", "cards", "serve", "--port", "0", "--no-playground"]


@contextmanager
def served(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*COMMAND, *options], stderr=subprocess.PIPE, text=True, env=environment)
    try:
        yield process, f"http://127.0.0.1:{line(process, 'listening')['port']}"
    finally:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str], message: str) -> dict[str, Any]:
    """The next log line with this message."""
    assert process.stderr is not None
    for text in process.stderr:
        if text.startswith("{") and (found := json.loads(text))["message"] == message:
            return dict(found)
    raise AssertionError(f"the server ended without {message!r}")


def test_a_signal_lets_the_running_answer_finish_and_refuses_others() -> None:
    with served("--api-key", "secret", "--method", "vanilla", "--chunk", "1", "--name", "served") as (process, url):
        body = {"model": "served", "prompt": "The movie was", "max_tokens": 300, "stream": True, "seed": 1}
        with httpx.Client(base_url=url, headers={"Authorization": "Bearer secret"}, timeout=60) as client:
            with client.stream("POST", "/v1/completions", json=body) as answer:
                lines = answer.iter_lines()
                next(lines)
                process.send_signal(signal.SIGTERM)
                until(lambda: client.get("/ready").status_code == 503)
                refused = client.post("/v1/completions", json=body)
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "ending")
                told = [text for text in lines if text.startswith("data: ")]
            assert told[-1] == "data: [DONE]"
            assert json.loads(told[-2][6:])["choices"][0]["finish_reason"] in ("stop", "length")
        assert process.wait(60) == 0
        assert line(process, "stopped")


def test_what_does_not_finish_in_time_is_cut_off() -> None:
    reward = Switch()
    reward.held = True
    with serving(mock(), reward, CARDS_IN_THREES, drain=0.2) as running:
        with running.send({"prompt": "abc", "stream": True}) as opened:
            until(lambda: reward.asked)
            running.server.handle_exit(signal.SIGINT, None)
            until(lambda: running.server.should_exit)
            until(lambda: opened.recv(4096) == b"")
        assert_free(running)


def test_bad_options_are_one_red_line() -> None:
    for options, words in [
        (["--beta", "-1"], "beta"),
        (["--api-key", "k", "--playground"], "playground"),
        (["--host", "203.0.113.1"], "203.0.113.1"),
        (["--deadline", "0"], "deadline"),
    ]:
        ran = CliRunner().invoke(cards.cli.app, ["serve", *options])
        assert ran.exit_code == 2, ran.output
        assert words in ran.stderr
        assert "Traceback" not in ran.output


def test_without_fastapi_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cards.serve.app", None)
    ran = CliRunner().invoke(cards.cli.app, ["serve"])
    assert ran.exit_code == 2
    assert "cards-decoding[serve]" in ran.stderr
