"""Access control of the playground: keys, origins, and the routes of Gradio that are open."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.mock_models import CARDS_IN_THREES, mock
from helpers.running_server import Running, Switch, serving
from starlette.routing import Mount

pytest.importorskip("gradio", reason="the playground needs Gradio")
from cards.serve.app import make_app
from cards.serve.options import ServerOptions
from cards.serve.playground.guard import PlaygroundGuard, same_origin

pytestmark = pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
FILE = {"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module")
def page() -> Iterator[Running]:
    with serving(mock(), Switch(), CARDS_IN_THREES, playground=True) as running:
        yield running


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    with serving(mock(), Switch(), CARDS_IN_THREES, playground=True, api_keys=("first", "second")) as running:
        yield running


def gradio_routes() -> list[tuple[str, str]]:
    """Every method and path of the installed Gradio, with values for parameters."""
    app = make_app(mock(), Switch(), CARDS_IN_THREES, ServerOptions(playground=True))
    mounted = app.routes[-1]
    assert isinstance(mounted, Mount)
    assert isinstance(mounted.app, PlaygroundGuard)
    paths: dict[str, Any] = mounted.app.app.openapi()["paths"]  # type: ignore[attr-defined]
    return [(method.upper(), re.sub(r"\{.*?\}", "x", path)) for path, methods in paths.items() for method in methods]


def test_only_the_routes_that_the_page_uses_are_open(page: Running) -> None:
    routes = gradio_routes()
    assert {("POST", "/gradio_api/upload"), ("GET", "/gradio_api/file=x"), ("GET", "/gradio_api/proxy=x")} <= {*routes}
    endless = ("/gradio_api/heartbeat/x", "/gradio_api/queue/data")
    answers = {route: httpx.request(route[0], page.url + route[1], timeout=60) for route in routes if route[1] not in endless}
    refused = {route for route, answer in answers.items() if answer.status_code == 404}
    assert answers.keys() - refused == {
        ("GET", "/"),
        ("HEAD", "/"),
        ("GET", "/favicon.ico"),
        ("GET", "/theme.css"),
        ("POST", "/gradio_api/cancel"),
        ("POST", "/gradio_api/queue/join"),
    }


@pytest.mark.parametrize("origin", [None, "http://evil.example", "null"])
def test_nobody_can_upload_a_file(page: Running, origin: str | None, tmp_path: Path) -> None:
    headers = {} if origin is None else {"Origin": origin}
    answer = page.post("/gradio_api/upload", files={"files": b"content"}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("value", [FILE, [FILE], {"path": "http://127.0.0.1:1/x", "meta": FILE["meta"]}])
@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/run/predict"])
def test_an_input_that_names_a_file_is_refused(page: Running, path: str, value: Any) -> None:
    answer = page.post(path, json={"data": [value], "fn_index": 0, "session_hash": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_body")


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/cancel"])
def test_pages_of_other_origins_are_refused(page: Running, path: str) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Origin": page.url, "Sec-Fetch-Site": "cross-site"}):
        answer = page.post(path, json={"data": []}, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_origin")
        assert "access-control-allow-origin" not in answer.headers
    assert page.post(path, json={"data": []}, headers={"Origin": page.url}).status_code != 403


def test_open_pages_leave_connections_to_the_api() -> None:
    heartbeat = b"GET /gradio_api/heartbeat/abc HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with serving(mock(), Switch(), CARDS_IN_THREES, playground=True, limit_connections=6) as running, ExitStack() as stack:
        for _ in range(3):
            opened = stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=60))
            opened.sendall(heartbeat)
            assert opened.recv(4096).startswith(b"HTTP/1.1 200")
        assert running.get("/theme.css").json()["error"]["code"] == "busy"
        assert running.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("headers", "same"),
    [
        ({}, True),
        ({"host": "a:1", "origin": "http://a:1"}, True),
        ({"host": "a:1", "origin": "http://a:2"}, False),
        ({"host": "a:1", "origin": "null"}, False),
        ({"host": "inner:1", "origin": "https://outer", "sec-fetch-site": "same-origin"}, True),
        ({"host": "a", "origin": "http://a", "sec-fetch-site": "cross-site"}, False),
    ],
)
def test_an_origin_is_the_same_by_the_browsers_word_or_by_its_host(headers: dict[str, str], same: bool) -> None:
    assert same_origin(httpx.Headers(headers)) is same  # type: ignore[arg-type]


def test_without_a_key_there_is_only_the_page_that_asks_for_one(locked: Running) -> None:
    first = locked.get("/")
    assert (first.status_code, first.headers["location"]) == (303, "login")
    assert "API key" in locked.get("/login").text
    for path in ("/theme.css", "/gradio_api/queue/data?session_hash=a", "/assets/x", "/openapi.json"):
        assert locked.get(path).status_code == 401
    for path in ("/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/upload"):
        assert locked.post(path, json={"data": []}).status_code == 401


@pytest.mark.parametrize("key", ["", "wrong", "first second", "firs"])
def test_a_wrong_key_does_not_open_the_page(locked: Running, key: str) -> None:
    answer = locked.post("/login", data={"key": key})
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert "does not accept this key" in answer.text
    assert "hidden" not in answer.text


def test_a_key_opens_the_page_by_a_cookie_that_does_not_open_the_api(locked: Running) -> None:
    answer = locked.post("/login", data={"key": "second"})
    assert (answer.status_code, answer.headers["location"]) == (303, ".")
    cookie = answer.headers["set-cookie"]
    assert "second" not in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    session = {"Cookie": cookie.partition(";")[0]}
    assert "CARDS playground" in httpx.get(locked.url, headers=session).text
    assert locked.post(json={"prompt": "a"}, headers=session).status_code == 401
    assert httpx.get(locked.url, headers={"Cookie": session["Cookie"][:-1]}).status_code == 303
