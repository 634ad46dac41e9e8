"""`cards serve` as a process: it says where it listens, finishes what runs when told to end, and ends well."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.mock_models import CARDS_IN_THREES, mock
from helpers.running_server import Switch, assert_free, serving, until
from typer.testing import CliRunner

import cards.cli
from cards.cli.serve import accepted_keys
from cards.errors import SettingError

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
        (["--api-key", ""], "API key"),
        (["--api-key", "first second"], "API key"),
        (["--keep-alive", "0"], "keep-alive"),
        (["--host", "203.0.113.1"], "203.0.113.1"),
        (["--deadline", "0"], "deadline"),
    ]:
        ran = CliRunner().invoke(cards.cli.app, ["serve", *options])
        assert ran.exit_code == 2, ran.output
        assert words in ran.stderr
        assert "Traceback" not in ran.output


@pytest.mark.parametrize("value", ["", " ", "first second", "key\n"])
def test_a_malformed_key_never_opens_a_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str) -> None:
    file = tmp_path / "keys"
    file.write_text(value.strip("\n"))
    monkeypatch.setattr("cards.serve.server.bind", lambda *_: pytest.fail("the server starts"))
    sources: list[tuple[list[str], dict[str, str]]] = [
        (["--api-key", value], {}),
        ([], {"CARDS_SERVE_API_KEY": value}),
    ]
    if not value.startswith("key"):  # a line end is not part of a key in a file
        sources.append((["--api-key-file", str(file)], {}))
    for options, environment in sources:
        ran = CliRunner().invoke(cards.cli.app, ["serve", *options], env=environment)
        assert ran.exit_code == 2, ran.output
        assert "key" in ran.stderr.lower()


def test_keys_come_from_options_and_a_file_else_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("first\r\n\nsecond\n")
    assert accepted_keys(None, None) == ()
    monkeypatch.setenv("CARDS_SERVE_API_KEY", "outer")
    assert accepted_keys(None, None) == ("outer",)
    assert accepted_keys(["given"], file) == ("given", "first", "second")
    for wrong in (tmp_path / "none", tmp_path):
        with pytest.raises(SettingError, match="api-key-file"):
            accepted_keys(None, wrong)
    file.write_text("\n")
    with pytest.raises(SettingError, match="no key"):
        accepted_keys(None, file)


@pytest.mark.slow
def test_every_line_of_a_running_server_is_json(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CARDS_SERVE_API_KEY": "secret"}
    process = subprocess.Popen(COMMAND[:-1], stderr=subprocess.PIPE, text=True, env=environment)  # with the playground
    try:
        assert process.stderr is not None
        lines = [json.loads(process.stderr.readline())]
        while lines[-1]["message"] != "listening":
            lines.append(json.loads(process.stderr.readline()))
        with httpx.Client(base_url=f"http://127.0.0.1:{lines[-1]['port']}", timeout=60) as client:
            client.post("/login", data={"key": "secret"})
            assert client.post("/playground/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200
            client.post("/v1/completions", content=b"{", headers={"Authorization": "Bearer secret"})
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
        assert all(json.loads(line)["message"] for line in rest.splitlines())
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_dead_collector_does_not_delay_the_exit() -> None:
    """The collector accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as dead:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{dead.getsockname()[1]}"
        try:
            with served("--otel", "otlp") as (process, url):
                httpx.post(f"{url}/v1/completions", json={"prompt": "a", "max_tokens": 2}, timeout=60)
                process.send_signal(signal.SIGTERM)
                assert line(process, "stopped")
                process.wait(5)  # the exporter would try for 10 s
        finally:
            del os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"]


def test_without_fastapi_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cards.serve.app", None)
    ran = CliRunner().invoke(cards.cli.app, ["serve"])
    assert ran.exit_code == 2
    assert "cards-decoding[serve]" in ran.stderr


@pytest.mark.slow
def test_a_configuration_file_starts_a_server_with_several_models(tmp_path: Path) -> None:
    path = tmp_path / "server.yaml"
    path.write_text(
        "limit-tokens: 5\nmodels:\n- {name: one, aliases: [two]}\n- {name: plain, method: vanilla}\n"
        "keys:\n- {name: alice, key: alice-key, requests: 2}\n"
    )
    key = {"Authorization": "Bearer alice-key"}
    with served("--config", str(path)) as (_, url), httpx.Client(base_url=url, headers=key, timeout=60) as client:
        answers = [client.post("/v1/completions", json={"model": name, "prompt": "a"}) for name in ("two", "plain", "one")]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[1].json()["usage"]["completion_tokens"] <= 5
        assert 'cards_key_requests_total{key="alice",outcome="busy"} 1.0' in client.get("/metrics").text


def test_options_of_one_model_contradict_a_file_with_models(tmp_path: Path) -> None:
    path = tmp_path / "server.yaml"
    path.write_text("models:\n- name: one\n")
    for options, words in ((["--beta", "1"], "--beta"), (["--reward", "tiny"], "--reward"), (["--alias", "x"], "--alias")):
        ran = CliRunner().invoke(cards.cli.app, ["serve", "--config", str(path), *options])
        assert ran.exit_code == 2, ran.output
        assert words in ran.stderr
        assert "configuration file" in ran.stderr
