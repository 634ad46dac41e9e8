"""Clients that leave, stall or half close free what they held; those that stay lose nothing."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Iterator

import pytest
from helpers.mock_models import CARDS_IN_THREES, mock
from helpers.random_models import letter_engine
from helpers.running_server import Running, Switch, assert_free, serving, until

from cards.backends.local.engine import TransformersEngine
from cards.serve.server import UNREAD_TIMEOUT

pytestmark = pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
LONG = {"prompt": "abc", "max_tokens": 100, "stream": True}


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    """Answers of a real engine that never end by themselves."""
    return letter_engine(slots=4)


@pytest.fixture
def letters(engine: TransformersEngine, reward: Switch) -> Iterator[Running]:
    with serving(engine, reward, CARDS_IN_THREES, max_queue=64) as running:
        yield running
        reward.held = False


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_rows(letters: Running, reward: Switch, stream: bool) -> None:
    reward.held = True
    opened = letters.send({**LONG, "stream": stream})
    until(lambda: reward.asked)
    assert letters.service.gate.running == 1
    opened.close()
    assert_free(letters)  # while the reward still holds what was asked of it
    assert reward.held
    until(lambda: letters.metric("cards_requests_total", method="cards", outcome="left") == 1)


def test_a_client_that_leaves_in_the_middle_of_a_stream_frees_its_rows(letters: Running, reward: Switch) -> None:
    opened = letters.send(LONG)
    received = b""
    while b"data: " not in received:
        received += opened.recv(4096)
    reward.held = True
    opened.close()
    assert_free(letters)
    until(lambda: letters.metric("cards_lm_wasted_tokens_total", method="cards") > 0)
    drawn = letters.metric("cards_lm_decoded_tokens_total", method="cards")
    assert letters.metric("cards_lm_wasted_tokens_total", method="cards") == drawn  # nobody kept any of it


def test_a_client_that_resets_the_connection_frees_its_rows(letters: Running, reward: Switch) -> None:
    reward.held = True
    opened = letters.send(LONG)
    until(lambda: reward.asked)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    opened.close()
    assert_free(letters)


def test_a_half_closed_connection_counts_as_left(letters: Running, reward: Switch) -> None:
    reward.held = True
    opened = letters.send(LONG)
    until(lambda: reward.asked)
    opened.shutdown(socket.SHUT_WR)
    assert_free(letters)
    opened.close()
    assert letters.get("/health").status_code == 200


def test_who_leaves_the_queue_takes_no_place(reward: Switch) -> None:
    reward.held = True
    with serving(mock(), reward, CARDS_IN_THREES, max_running=1) as running:
        first, second = (running.send(LONG) for _ in range(2))
        until(lambda: len(running.service.gate.waiting) == 1)
        second.close()
        until(lambda: not running.service.gate.waiting)
        first.close()
        assert_free(running)


def test_a_client_that_reads_slowly_holds_no_rows_and_gets_everything(letters: Running) -> None:
    opened = letters.send({**LONG, "seed": 1, "cards": {"trace": True}})
    assert_free(letters)  # before anything of it was read
    received = b""
    while b"[DONE]" not in received:
        received += opened.recv(64)
    opened.close()
    lines = [line[6:] for line in received.decode().splitlines() if line.startswith("data: {")]
    texts = [choice["text"] for line in lines for choice in json.loads(line)["choices"]]
    whole = letters.post(json={**LONG, "stream": False, "seed": 1}).json()["choices"][0]["text"]
    assert "".join(texts) == whole


async def test_a_thousand_cancelled_requests_leave_no_row_taken(letters: Running) -> None:
    async with letters.asynchronous() as client:

        async def one(number: int) -> None:
            stream = await client.completions.create(model=letters.service.name, prompt="ab", max_tokens=90, stream=True)
            for _ in range(number % 3):
                await anext(stream)
            await stream.close()

        async def leave(number: int) -> None:
            task = asyncio.create_task(one(number))
            if number % 2:  # before there is an answer
                await asyncio.sleep(0.001 * (number % 7))
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        for start in range(0, 1000, 50):
            await asyncio.gather(*(leave(start + i) for i in range(50)))
    await asyncio.to_thread(assert_free, letters)
    assert letters.metric("cards_rows_in_use") == 0
    answer = letters.post(json={"prompt": "ab", "max_tokens": 6})  # and the server is as good as new
    assert answer.json()["usage"]["completion_tokens"] == 6


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux can do this")
def test_the_kernel_drops_clients_that_take_nothing(letters: Running, reward: Switch) -> None:
    reward.held = True
    with letters.send(LONG):
        until(lambda: reward.asked)
        [connection] = letters.server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == UNREAD_TIMEOUT
    assert_free(letters)
