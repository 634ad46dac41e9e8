"""A server that ends tells every client so, and leaves in time."""

from __future__ import annotations

import json
import signal
import socket
import threading
from typing import Any

import pytest
from helpers.mock_models import CARDS_IN_THREES, mock
from helpers.running_server import Running, Switch, assert_free, serving, until

STREAM = {"prompt": "abc", "stream": True}


def read(opened: socket.socket) -> str:
    """Return the rest of the response, and close the connection."""
    received = b""
    with opened:
        while part := opened.recv(4096):
            received += part
    return received.decode()


def until_ping(opened: socket.socket) -> str:
    received = b""
    while b": ping" not in received:
        received += opened.recv(4096)
    return received.decode()


def end(running: Running, signals: int = 1) -> None:
    for _ in range(signals):
        running.server.handle_exit(signal.SIGTERM, None)


@pytest.mark.parametrize(("drain", "signals"), [(0.2, 1), (600, 2)])
def test_each_started_stream_ends_with_an_error_and_each_other_request_gets_one(drain: float, signals: int) -> None:
    reward = Switch()
    reward.held = True
    with serving(mock(), reward, CARDS_IN_THREES, drain=drain, max_running=2) as running:
        stream, whole = running.send(STREAM), running.send({"prompt": "abc"})
        until(lambda: reward.asked == 2)
        waiting = [running.send({"prompt": "abc", "stream": streams}) for streams in (True, False)]
        until(lambda: len(running.service.gate.waiting) == 2)
        end(running, signals)
        lines = read(stream).splitlines()
        events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert json.loads(events[-2])["error"]["code"] == "ending"
        assert events[-1] == "[DONE]"
        for opened in (whole, *waiting):
            head, _, body = read(opened).partition("\r\n\r\n")
            assert head.startswith("HTTP/1.1 503")
            assert json.loads(body)["error"]["code"] == "ending"
        assert_free(running)
        reward.held = False


def test_a_stream_that_has_sent_text_ends_with_an_error() -> None:
    reward = Switch()
    with serving(mock(), reward, CARDS_IN_THREES, drain=0.1) as running:

        async def hang(prompt: Any, responses: Any) -> list[float]:
            reward.held = any(len(response.token_ids) > 3 for response in responses)  # so the first segment is accepted
            return await Switch.rate(reward, prompt, responses)

        reward.rate = hang  # type: ignore[method-assign]
        opened = running.send(STREAM)
        until(lambda: reward.held)
        end(running)
        told = read(opened)
        assert '"text": "' in told
        assert '"code": "ending"' in told
        assert "data: [DONE]" in told
        reward.held = False


def test_a_prompt_that_is_tokenized_does_not_delay_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    with serving(mock(), Switch(), CARDS_IN_THREES, drain=0.1) as running:
        monkeypatch.setattr(running.service.engine, "encode", lambda given: go.wait(60))
        opened = running.send(STREAM)
        until(lambda: running.service.gate.running)
        end(running)
        assert '"code":"ending"' in read(opened)
        go.set()


def test_a_body_that_still_arrives_is_answered_in_openais_form(caplog: pytest.LogCaptureFixture) -> None:
    with serving(mock(), Switch(), CARDS_IN_THREES, drain=0.1) as running:
        opened = socket.create_connection(("127.0.0.1", running.port), timeout=60)
        opened.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        until(lambda: running.server.server_state.tasks)
        end(running)
        head, _, body = read(opened).partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 503")
    assert json.loads(body)["error"]["code"] == "ending"
    assert "Traceback" not in caplog.text


def test_a_stream_starts_at_once_and_speaks_while_there_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("routes", "streaming"):
        monkeypatch.setattr(f"cards.serve.{module}.PING_SECONDS", 0.05)
    reward = Switch()
    reward.held = True
    with serving(mock(), reward, CARDS_IN_THREES, max_running=1) as running:
        first, second = running.send(STREAM), running.send(STREAM)
        starts = {opened: until_ping(opened) for opened in (first, second)}  # the second one waits in the queue
        reward.held = False
        for opened, start in starts.items():
            assert start.startswith("HTTP/1.1 200")
            told = start + read(opened)
            events = [line for line in told.splitlines() if line.startswith("data: ")]
            assert events[-1] == "data: [DONE]"
            assert '"finish_reason": "length"' in events[-2]
    assert_free(running)


def test_a_stream_that_cannot_start_has_the_status_of_its_error(mocked: Running, reward: Switch) -> None:
    answer = mocked.post(json={**STREAM, "prompt": ""})
    assert answer.status_code == 400
    reward.held = True
    held = [mocked.send(STREAM) for _ in range(3)]
    until(lambda: len(mocked.service.gate.waiting) == 1)
    assert mocked.post(json=STREAM).status_code == 429
    for opened in held:
        opened.close()
    assert_free(mocked)
