"""A reward that fails is never hidden: refused by default, or answered by plain sampling with a mark."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import openai
import pytest
from helpers.mock_models import CARDS_IN_THREES, mock
from helpers.running_server import Running, Switch, assert_free, serving, until

from cards import Decoder
from cards.backends.http.client import RejectedRequestError
from cards.backends.http.connect import connect_reward
from cards.engines.base import Ask
from cards.engines.mock import MockEngine
from cards.errors import UnavailableError
from cards.events import Segment
from cards.methods import Vanilla
from cards.serve.errors import api_error

pytestmark = pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
BODY = {"prompt": "abc", "max_tokens": 12, "seed": 1}
PLAIN = Vanilla(temperature=1.0, top_k=None)  # as CARDS_IN_THREES samples


@pytest.fixture
def closed(reward: Switch) -> Iterator[Running]:
    with serving(mock(), reward, CARDS_IN_THREES) as running:
        yield running


@pytest.fixture
def open_(reward: Switch) -> Iterator[Running]:
    with serving(mock(), reward, CARDS_IN_THREES, on_reward_failure="plain") as running:
        yield running


def test_by_default_what_the_reward_cannot_steer_is_refused(closed: Running, reward: Switch) -> None:
    reward.broken = True
    with pytest.raises(openai.InternalServerError) as caught:
        closed.client().completions.create(model="mock", **BODY)  # type: ignore[call-overload]
    assert caught.value.status_code == 503
    assert caught.value.code == "reward_failed"
    assert int(caught.value.response.headers["Retry-After"]) > 0
    assert_free(closed)


def test_a_server_is_not_ready_until_its_reward_answers_again(closed: Running, reward: Switch) -> None:
    assert closed.get("/ready").status_code == 200
    reward.broken = True
    assert closed.post(json=BODY).status_code == 503
    ready = closed.get("/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "The reward 'switch' failed: RewardError.")
    reward.broken = False
    assert closed.get("/ready").status_code == 200
    assert closed.post(json=BODY).status_code == 200
    until(lambda: closed.metric("cards_requests_total", method="cards", outcome="unavailable") == 1)


@pytest.mark.parametrize("policy", ["closed", "plain"])
def test_a_stream_that_told_text_ends_with_an_error(reward: Switch, policy: Any) -> None:
    with serving(mock(), reward, CARDS_IN_THREES, on_reward_failure=policy) as running:
        whole = running.post(json=BODY).json()["choices"][0]["text"]
        reward.good = reward.asked + 3  # the prompt's reward, and some segments
        chunks: list[Any] = []
        with pytest.raises(openai.APIError, match=r"failed|not available"):
            chunks.extend(running.client().completions.create(model="mock", stream=True, **BODY))  # type: ignore[call-overload]
        told = "".join(chunk.choices[0].text for chunk in chunks)
        assert not any(chunk.choices[0].finish_reason for chunk in chunks)
        assert told
        assert whole.startswith(told)
        assert whole != told
        until(lambda: running.metric("cards_requests_total", method="cards", outcome="unavailable") == 1)
        reward.good = reward.asked + 3
        with running.send({**BODY, "stream": True}) as opened, opened.makefile("rb") as lines:
            data = [line[6:].strip() for line in lines if line.startswith(b"data: ")]
            assert json.loads(data[-2])["error"]["code"] == "reward_failed"
            assert data[-1] == b"[DONE]"


@pytest.mark.parametrize("stream", [True, False])
def test_plain_sampling_takes_over_and_says_so(open_: Running, reward: Switch, stream: bool) -> None:
    expected = Decoder(mock(), None, PLAIN)("abc", max_tokens=12, seed=1).text
    reward.broken = True
    answer = open_.post(json={**BODY, "stream": stream})
    assert answer.status_code == 200
    assert stream or answer.headers["X-Cards-Aligned"] == "false"  # a stream has sent its headers before
    parts = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")] or [answer.json()]
    assert "".join(part["choices"][0]["text"] for part in parts) == expected
    end = parts[-1]["choices"][0]["cards"]
    assert end["aligned"] is False
    assert end["reason"] == "The reward failed. Retry later."
    until(lambda: open_.metric("cards_unaligned_answers_total", method="cards") == 1)


def test_an_answer_that_is_told_at_the_end_is_begun_again(open_: Running, reward: Switch) -> None:
    reward.good = 3
    choice = open_.post(json=BODY).json()["choices"][0]
    assert choice["text"] == Decoder(mock(), None, PLAIN)("abc", max_tokens=12, seed=1).text
    assert choice["cards"]["aligned"] is False
    reward.good = 10**9
    choice = open_.post(json=BODY).json()["choices"][0]
    assert (choice["cards"]["aligned"], "reason" in choice["cards"]) == (True, False)


def test_a_method_without_reward_is_not_called_unaligned(open_: Running, reward: Switch) -> None:
    reward.broken = True
    answer = open_.post(json={**BODY, "cards": {"method": "vanilla"}})
    assert answer.json()["choices"][0]["cards"]["aligned"] is True
    assert "X-Cards-Aligned" not in answer.headers


class Dying(MockEngine):
    """A model on a server that is killed after so many asks."""

    left = 10**9

    async def propose(self, ask: Ask) -> AsyncGenerator[list[Segment], None]:
        self.left -= 1
        if self.left < 0:
            raise UnavailableError("The model server at http://lm:1 went away.")
        async for batch in super().propose(ask):
            yield batch


@pytest.mark.parametrize("policy", ["closed", "plain"])
def test_a_model_that_goes_away_in_the_middle_of_a_stream_ends_it_with_an_error(reward: Switch, policy: Any) -> None:
    engine = Dying(lambda _: [0.25] * 4, "abc ")
    with serving(engine, reward, CARDS_IN_THREES, on_reward_failure=policy) as running:
        engine.left = 3
        create: Any = running.client().completions.create
        chunks: list[Any] = []
        with pytest.raises(openai.APIError, match=r"failed|not available"):
            chunks.extend(create(model="mock", stream=True, prompt="abc", max_tokens=60))
        assert chunks
        assert not any(chunk.choices[0].finish_reason for chunk in chunks)
        answer = running.post(json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_unavailable")
        assert running.get("/ready").json() == {"status": "The model 'mock' failed: UnavailableError."}
        engine.left = 10**9
        assert running.get("/ready").status_code == 200
        assert running.post(json=BODY).status_code == 200
        assert_free(running)


class Judge(http.server.BaseHTTPRequestHandler):
    """A reward model on a server of its own."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps({"rewards": [text.count("a") for text in asked["responses"]]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def judging(port: int) -> Iterator[int]:
    class Server(http.server.ThreadingHTTPServer):
        allow_reuse_address = True

    with Server(("127.0.0.1", port), Judge) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_a_reward_server_that_is_killed_and_restarted() -> None:
    with ExitStack() as stack:
        with judging(0) as port:
            reward = connect_reward(f"http://127.0.0.1:{port}/score", target=0.0, retries=0)
            running = stack.enter_context(serving(mock(), reward, CARDS_IN_THREES))
            first = running.post(json=BODY).json()
        refused = running.post(json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "reward_failed")
        assert running.get("/ready").status_code == 503
        with judging(port):
            assert running.get("/ready").status_code == 200
            assert running.post(json=BODY).json()["choices"] == first["choices"]
        assert_free(running)


def test_what_a_remote_server_refuses_is_not_the_clients_fault() -> None:
    assert api_error(RejectedRequestError("401 wrong key", 401)).status_code == 503
    assert api_error(RejectedRequestError("the prompt is too long", 400)).status_code == 400
