"""Clients learn neither credentials nor what the servers of the models say; the log has the details."""

from __future__ import annotations

import http.server
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.mock_models import CARDS_IN_THREES, mock
from helpers.running_server import Running, Switch, serving

from cards.backends.http.connect import connect_reward
from cards.errors import public_name
from cards.serve.errors import public

SECRET, UPSTREAM = "hunter2", "Traceback in /srv/rm/scores.py"
BODY = {"prompt": "abc", "max_tokens": 6, "seed": 1}


class Scores(http.server.BaseHTTPRequestHandler):
    status: int = 200

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert SECRET in self.path
        assert self.headers["Authorization"].startswith("Basic")
        rewards = json.dumps({"rewards": [1.0] * len(asked["responses"])})
        data = (rewards if self.status == 200 else UPSTREAM).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Scores, "status", 200)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scores) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://user:{SECRET}@127.0.0.1:{server.server_address[1]}/score?key={SECRET}"
        server.shutdown()
        thread.join()


def responses(running: Running) -> list[str]:
    """Return what the server answers to many kinds of requests."""
    found = [running.post(json=BODY | {"stream": stream, "cards": {"trace": True}}).text for stream in (False, True)]
    return found + [running.get(path).text for path in ("/v1/models", "/ready", "/metrics", "/v1/nothing")]


@pytest.mark.parametrize("policy", ["closed", "plain"])
@pytest.mark.parametrize("status", [200, 401, 404, 422, 500])
def test_no_response_has_a_credential_or_an_upstream_error_and_the_log_has_the_error(
    address: str, policy: Any, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    reward = connect_reward(address, target=0.0, retries=0)
    assert SECRET not in reward.name
    caplog.set_level(logging.INFO, "cards.serve")
    with serving(mock(), reward, CARDS_IN_THREES, on_reward_failure=policy) as running:
        Scores.status = status
        told = responses(running)
        assert not [text for text in told if SECRET in text or "/srv/" in text or "Traceback" in text]
        assert (running.get("/ready").status_code == 200) == (status == 200)
        if status != 200 and policy == "plain":
            choice = running.post(json=BODY).json()["choices"][0]
            assert (choice["cards"]["aligned"], choice["cards"]["reason"]) == (False, "The reward failed. Retry later.")
    logged = [getattr(record, "fields", {}).get("details", "") for record in caplog.records]
    assert any(UPSTREAM in line for line in logged) == (status != 200)
    assert not any(SECRET in line for line in logged)


def test_the_log_does_not_quote_texts(caplog: pytest.LogCaptureFixture) -> None:
    reward = Switch()
    reward._score = lambda response: float("nan")  # type: ignore[method-assign]
    caplog.set_level(logging.INFO, "cards.serve")
    with serving(mock(), reward, CARDS_IN_THREES) as running:
        assert running.post(json={**BODY, "prompt": "abcabcabc"}).status_code == 503
    logged = [getattr(record, "fields", {}) for record in caplog.records]
    [line] = [fields["details"] for fields in logged if "details" in fields]
    assert "finite numbers" in line
    assert "abcabcabc" not in line


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("http://user:pw@host:1/v1?key=pw#NAME", "http://host:1/v1#NAME"),
        ("HTTPS://pw@host", "HTTPS://host"),
        ("http://host/a@b?x=1 + json", "http://host/a@b + json"),
        ("tiny", "tiny"),
        ("/models/a?b@c", "/models/a?b@c"),
    ],
)
def test_names_have_no_credentials(name: str, expected: str) -> None:
    assert public_name(name) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Model '/srv/models/llama' is", "Model 'llama' is"),
        ("http://host:1/a/b/c", "http://host:1/a/b/c"),
        ("org/name and 1/2/3", "org/name and 1/2/3"),
        ("Sum(/a/b/rm, tiny)", "Sum(rm, tiny)"),
    ],
)
def test_texts_for_clients_have_no_folders(text: str, expected: str) -> None:
    assert public(text) == expected
