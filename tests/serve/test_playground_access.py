"""Access control of the playground: keys, origins, and what the page may load."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from helpers.mock_models import CARDS_IN_THREES, mock
from helpers.running_server import Running, Switch, serving
from starlette.datastructures import Headers

from cards.serve.playground.files import FOLDER
from cards.serve.playground.routes import same_origin

RUN = "/playground/v1/completions"
BODY = {"prompt": "abc", "max_tokens": 3}


@pytest.fixture(scope="module")
def page() -> Iterator[Running]:
    with serving(mock(), Switch(), CARDS_IN_THREES, playground=True) as running:
        yield running


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    with serving(mock(), Switch(), CARDS_IN_THREES, playground=True, api_keys=("first", "second")) as running:
        yield running


def test_the_page_may_load_and_contact_this_server_only(page: Running) -> None:
    for path in ("/", *(f"/{file.name}" for file in FOLDER.iterdir())):
        answer = page.get(path)
        assert answer.status_code == 200
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert {policy[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
        assert (policy["frame-ancestors"], policy["base-uri"]) == ("'none'", "'none'")
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/../routes.py", "/%2e%2e/routes.py", "/..%2froutes.py", "/nothing", "/playground/", "/page"])
def test_there_are_no_other_files(page: Running, path: str) -> None:
    answer = page.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("path", [RUN, "/playground/v1/chat/completions"])
def test_pages_of_other_origins_are_refused(page: Running, path: str) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Origin": page.url, "Sec-Fetch-Site": "cross-site"}):
        answer = page.post(path, json=BODY | {"messages": [{"role": "user", "content": "a"}]}, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_origin")
        assert "access-control-allow-origin" not in answer.headers
    assert page.post(RUN, json=BODY, headers={"Origin": page.url}).status_code == 200


def test_other_hosts_are_refused() -> None:
    with serving(mock(), Switch(), CARDS_IN_THREES, playground=True, allowed_hosts=("localhost",)) as running:
        for path in ("/", "/app.js", "/playground/offer"):
            assert httpx.get(running.url + path, headers={"Host": "evil.example"}).status_code == 403
            assert httpx.get(running.url + path, headers={"Host": "localhost:1"}).status_code == 200
        assert httpx.post(running.url + RUN, json=BODY, headers={"Host": "evil.example"}).status_code == 403


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
    assert same_origin(Headers(headers)) is same


def test_without_a_key_there_is_only_the_page_that_asks_for_one(locked: Running) -> None:
    first = locked.get("/")
    assert (first.status_code, first.headers["location"]) == (303, "login")
    assert "API key" in locked.get("/login").text
    for path in ("/app.js", "/style.css", "/index.html", "/playground/offer", "/openapi.json"):
        assert locked.get(path).status_code == 401
    for path in (RUN, "/playground/v1/chat/completions"):
        assert locked.post(path, json=BODY).status_code == 401


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
    assert locked.post(RUN, json=BODY, headers=session).status_code == 200
    assert locked.post(RUN, json=BODY, headers=session | {"Origin": "http://evil.example"}).status_code == 403
    assert locked.post(json=BODY, headers=session).status_code == 401
    assert httpx.get(locked.url, headers={"Cookie": session["Cookie"][:-1]}).status_code == 303
