"""Requests to servers that fail, on the way, at the door and in mid-answer."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from functools import partial
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from helpers.model_server import Faulty, running
from helpers.waiting import eventually

from cards.backends.http.client import Client, RejectedRequestError
from cards.errors import SettingError, UnavailableError

pytestmark = pytest.mark.slow  # real servers


@pytest.fixture
def door() -> Iterator[tuple[Faulty, str]]:
    """A server that echoes, whole and as events."""
    api = FastAPI()

    @api.post("/whole")
    async def whole(request: Request) -> Any:
        return await request.json()

    @api.post("/events")
    async def events(request: Request) -> Any:
        wanted = await request.json()

        async def told() -> AsyncIterator[str]:
            for item in wanted:
                yield f": a comment\n\ndata: {json.dumps(item, ensure_ascii=False)}\r\n\r\n"
                await asyncio.sleep(0.01)
            yield "data: [DONE]\n\n"

        return StreamingResponse(told(), media_type="text/event-stream")

    faulty = Faulty(api)
    with running(faulty) as address:
        yield faulty, address


def client_of(address: str, **options: Any) -> Client:
    return Client(address, **({"backoff": 0.001} | options))


async def heard(client: Client, wanted: list[Any]) -> list[Any]:
    async with aclosing(client.events("/events", wanted)) as events:
        return [event async for event in events]


async def test_events_hold_any_character(door: tuple[Faulty, str]) -> None:
    client = client_of(door[1])
    said = ["one\u2028line", "a\x85b", "é \U0001f600", "two\nlines", {"a": [1.5, None]}]
    assert await heard(client, said) == said
    await client.aclose()


@pytest.mark.parametrize("fault", [500, 502, 503, 429, "drop"])
async def test_what_fails_twice_is_asked_again(door: tuple[Faulty, str], fault: int | str) -> None:
    faulty, address = door
    client = client_of(address)
    faulty.faults.extend([fault, fault])
    assert await client.post("/whole", {"a": 1}) == {"a": 1}
    faulty.faults.extend([fault, fault])
    assert await heard(client, [1, 2]) == [1, 2]
    assert len(faulty.requests) == 6
    await client.aclose()


async def test_connections_are_used_again(door: tuple[Faulty, str]) -> None:
    faulty, address = door
    client = client_of(address)
    seen = set()
    real = faulty.app

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        seen.add(scope["client"])
        await real(scope, receive, send)

    faulty.app = noting
    for i in range(5):
        assert await client.post("/whole", i) == i
        assert await heard(client, [i]) == [i]
    assert len(seen) == 1
    await client.aclose()


async def test_what_keeps_failing_is_unavailable(door: tuple[Faulty, str]) -> None:
    faulty, address = door
    client = client_of(address, retries=2)
    faulty.faults.extend([500] * 3)
    with pytest.raises(UnavailableError, match=rf"{address}/whole .* 500: told to fail with 500 \(tried 3 times\)"):
        await client.post("/whole", 1)
    assert len(faulty.requests) == 3
    await client.aclose()


async def test_nobody_there() -> None:
    client = client_of("http://127.0.0.1:1", retries=1)
    with pytest.raises(UnavailableError, match=r"127.0.0.1:1/whole is not available: .*tried 2 times"):
        await client.post("/whole", 1)
    await client.aclose()


async def test_a_stream_is_not_asked_again_once_something_was_taken(door: tuple[Faulty, str]) -> None:
    faulty, address = door
    client = client_of(address)
    faulty.faults.append("cut")
    with pytest.raises(UnavailableError, match="/events interrupted"):
        await heard(client, [1, 2, 3])
    assert len(faulty.requests) == 1
    await client.aclose()


async def test_the_server_says_when_to_come_back(door: tuple[Faulty, str], monkeypatch: pytest.MonkeyPatch) -> None:
    faulty, address = door
    pauses: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds > 1:  # the rest is the server's own
            pauses.append(seconds)
        else:
            await real(seconds)

    client = client_of(address)
    monkeypatch.setattr("asyncio.sleep", sleep)
    faulty.retry_after = "17"
    faulty.faults.extend([429, 503])
    assert await client.post("/whole", 1) == 1
    assert pauses == [17.0, 17.0]
    await client.aclose()


async def test_silence_is_not_waited_for_twice(door: tuple[Faulty, str]) -> None:
    faulty, address = door
    client = client_of(address, timeout=0.2)
    faulty.faults.append("hang")
    with pytest.raises(UnavailableError, match=r"sent nothing for 0.2 s"):
        await client.post("/whole", 1)
    assert len(faulty.requests) == 1
    await eventually(lambda: faulty.left == 1, lambda: asyncio.sleep(0.01))
    await client.aclose()


async def test_a_client_that_leaves_is_seen_to_leave(door: tuple[Faulty, str]) -> None:
    faulty, address = door
    client = client_of(address)
    for ask in (client.post("/whole", 1), heard(client, [1])):
        faulty.faults.append("hang")
        before, left = len(faulty.requests), faulty.left
        task = asyncio.create_task(ask)
        await eventually(partial(lambda n: len(faulty.requests) > n, before), lambda: asyncio.sleep(0.01))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        await eventually(partial(lambda n: faulty.left > n, left), lambda: asyncio.sleep(0.01))
    await client.aclose()


async def test_an_answer_that_is_no_json(door: tuple[Faulty, str]) -> None:
    faulty, address = door
    client = client_of(address)
    faulty.faults.append("text")
    with pytest.raises(UnavailableError, match="did not return JSON, got 'hello'"):
        await client.post("/whole", 1)
    await client.aclose()


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_a_refusal_is_final_and_says_why(door: tuple[Faulty, str], status: int) -> None:
    faulty, address = door
    client = client_of(address)
    faulty.faults.append(status)
    with pytest.raises(RejectedRequestError, match=f"/whole rejected the request .*told to fail with {status}"):
        await client.post("/whole", 1)
    assert len(faulty.requests) == 1
    await client.aclose()


async def test_the_key_is_sent_and_never_told(door: tuple[Faulty, str], monkeypatch: pytest.MonkeyPatch) -> None:
    faulty, address = door
    faulty.faults.extend([401, 500])
    client = client_of(address, api_key="secret", retries=0)
    for _ in range(2):
        with pytest.raises((RejectedRequestError, UnavailableError)) as caught:
            await client.post("/whole", 1)
        assert "secret" not in str(caught.value)
    assert [headers["authorization"] for _, headers in faulty.requests] == ["Bearer secret"] * 2
    await client.aclose()
    monkeypatch.setenv("CARDS_API_KEY", "hidden")
    client = client_of(address)
    await client.post("/whole", 1)
    assert faulty.requests[-1][1]["authorization"] == "Bearer hidden"
    await client.aclose()


async def test_loops_do_not_share_connections(door: tuple[Faulty, str]) -> None:
    _, address = door
    client = client_of(address)
    assert await client.post("/whole", 1) == 1
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda i=i: answers.append(client.run(client.post("/whole", i)))) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert sorted(answers) == [0, 1, 2, 3]
    assert await client.post("/whole", 2) == 2
    await client.aclose()


@pytest.mark.parametrize("address", ["http://", "http://[::1", "http:///v1"])
def test_an_address_without_a_host(address: str) -> None:
    with pytest.raises(SettingError, match="address"):
        Client(address)


def test_settings_are_checked() -> None:
    with pytest.raises(SettingError, match="timeout"):
        Client("http://a", timeout=0)
    with pytest.raises(SettingError, match="retries"):
        Client("http://a", retries=-1)
