"""API keys have names, limits and metrics of their own; secrets appear nowhere."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from helpers.mock_models import CARDS_IN_THREES, mock
from helpers.running_server import Running, Switch, assert_free, serving, until

from cards.errors import SettingError
from cards.serve.api_key import ANYONE, ApiKey, named_keys
from cards.serve.errors import ApiError
from cards.serve.limits import Bucket, Meters
from cards.serve.options import ServerOptions

pytestmark = pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
BODY = {"prompt": "abcabc", "max_tokens": 9, "seed": 1}
ALICE = ApiKey(name="alice", secret="alice-secret", running=1)
BOB = ApiKey(name="bob", secret="bob-secret", requests=2)
CAROL = ApiKey(name="carol", secret="carol-secret", tokens=40)


@pytest.fixture
def reward() -> Switch:
    return Switch()


@pytest.fixture
def running(reward: Switch) -> Iterator[Running]:
    with serving(mock(), reward, CARDS_IN_THREES, api_keys=(ALICE, BOB, CAROL, "bare-secret")) as running:
        yield running
        reward.held = False


def post(running: Running, key: str, path: str = "/v1/completions", **more: Any) -> httpx.Response:
    return running.post(path, json={**BODY, **more}, headers={"Authorization": f"Bearer {key}-secret"})


def error(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_requests_in_progress_are_limited_per_key(running: Running, reward: Switch) -> None:
    reward.held = True
    body = json.dumps(BODY | {"stream": True})
    headers = {"Authorization": "Bearer alice-secret", "Content-Type": "application/json"}
    with httpx.stream("POST", f"{running.url}/v1/completions", content=body, headers=headers, timeout=60) as opened:
        assert running.metric("cards_key_running", key="alice") == 1
        refused = post(running, "alice")
        assert error(refused) == (429, "key_running")
        assert refused.headers["Retry-After"] == "1"
        reward.held = False
        assert post(running, "bob").status_code == 200  # other keys are not affected
        opened.read()
    until(lambda: running.metric("cards_key_running", key="alice") == 0)
    assert post(running, "alice").status_code == 200
    assert_free(running)


def test_requests_per_minute_are_limited_per_key(running: Running) -> None:
    assert [post(running, "bob").status_code for _ in range(2)] == [200, 200]
    refused = post(running, "bob")
    assert error(refused) == (429, "key_requests")
    assert 1 <= int(refused.headers["Retry-After"]) <= 30
    assert "2 requests per minute" in refused.json()["error"]["message"]
    tokenize = running.post("/tokenize", json={"prompt": "a"}, headers={"Authorization": "Bearer bob-secret"})
    assert error(tokenize) == (429, "key_requests")
    assert post(running, "alice", n=0).status_code == 400  # a malformed request costs nothing
    assert post(running, "alice").status_code == 200


def test_tokens_per_minute_are_limited_per_key(running: Running) -> None:
    """Each request has 6 + 9 tokens; 9 are reserved before it starts."""
    assert [post(running, "carol").status_code for _ in range(2)] == [200, 200]
    refused = post(running, "carol", max_tokens=30)
    assert error(refused) == (429, "key_tokens")
    assert int(refused.headers["Retry-After"]) > 10
    assert running.metric("cards_key_tokens_total", key="carol", kind="prompt") == 12
    assert running.metric("cards_key_tokens_total", key="carol", kind="response") == 18
    assert running.metric("cards_key_requests_total", key="carol", outcome="ok") == 2
    assert running.metric("cards_key_requests_total", key="carol", outcome="busy") == 1


def test_logs_and_metrics_have_names_and_no_secrets(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cards.serve")
    post(running, "alice")
    post(running, "bare")
    post(running, "wrong")
    until(lambda: len([r for r in caplog.records if r.getMessage() == "request"]) >= 2)
    lines = [record.fields for record in caplog.records if record.getMessage() == "request"]  # type: ignore[attr-defined]
    assert {line.get("key") for line in lines} >= {"alice", "key-4"}
    seen = running.get("/metrics").text + json.dumps(lines, default=str) + repr(running.service.options)
    assert "alice" in seen
    assert "secret" not in seen.replace("secret=", "").replace("bare-secret", "")  # a text is a key that the caller gave


def test_without_keys_all_clients_share_the_limits() -> None:
    with serving(mock(), Switch(), CARDS_IN_THREES, limit_key_requests=1) as running:
        assert running.post(json=BODY).status_code == 200
        assert error(running.post(json=BODY)) == (429, "key_requests")
        assert "cards_key" not in running.get("/metrics").text


def test_a_bucket_fills_continuously_and_can_be_overdrawn() -> None:
    now = 0.0
    bucket = Bucket(60, lambda: now)
    bucket.take(50)
    assert bucket.wait(20) == pytest.approx(10)
    assert bucket.wait(1000) == pytest.approx(50)  # a request for more than it holds waits until it is full
    bucket.take(40)
    assert bucket.level == -30
    now = 45.0
    assert bucket.level == pytest.approx(15)
    bucket.take(-100)
    now = 46.0
    assert bucket.level == 60


def test_unused_tokens_are_given_back() -> None:
    meters = Meters([CAROL])
    with meters.request("carol", 40, lambda: 5), pytest.raises(ApiError), meters.request("carol", 10, lambda: 0):
        pass
    with meters.request("carol", 30, lambda: 60):  # the prompt was long
        pass
    with pytest.raises(ApiError), meters.request("carol", 1, lambda: 0):
        pass
    assert meters.meters["carol"].running == 0
    assert ANYONE not in meters.meters


def test_limits_of_the_server_are_those_of_keys_without_their_own() -> None:
    meters = Meters([ALICE, BOB], running=5, requests=7).meters
    assert [meters[name].most for name in ("alice", "bob")] == [1, 5]
    assert [meters[name].requests.capacity for name in ("alice", "bob")] == [7, 2]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("a b",), "printable ASCII"),
        ((ALICE, ApiKey(name="alice", secret="x")), "name"),
        ((ALICE, ApiKey(name="other", secret="alice-secret")), "secret"),
        (("same", "same"), "secret"),
    ],
)
def test_names_and_secrets_are_checked(keys: Any, words: str) -> None:
    with pytest.raises(SettingError, match=words) as caught:
        ServerOptions(api_keys=keys)
    assert "alice-secret" not in str(caught.value)
    for wrong in ({"name": "a b"}, {"name": ""}, {"name": "x"}, {"running": 0}, {"tokens": -1}):
        with pytest.raises(SettingError):
            ApiKey(**{"name": "n", "secret": "x", **wrong})  # type: ignore[arg-type]
    assert [key.name for key in named_keys(("a", ALICE, "b"))] == ["key-1", "alice", "key-3"]
