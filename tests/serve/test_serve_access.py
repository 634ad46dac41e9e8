"""Hosts that a server answers for, guesses of API keys, and the server's defaults for chats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
from helpers.mock_models import CARDS_IN_THREES, mock
from helpers.running_server import Running, Switch, serving
from typer.testing import CliRunner

import cards.cli
import cards.cli.serve
from cards.cli.serve import LOCAL
from cards.errors import PromptError, SettingError
from cards.events import Message, Prompt
from cards.prompts import Chat
from cards.serve import keys
from cards.serve.app import make_app
from cards.serve.errors import ApiError
from cards.serve.guard import host_name
from cards.serve.keys import MAX_WRONG, WAIT, Keys
from cards.serve.options import ServerOptions

USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture(scope="module")
def local() -> Iterator[Running]:
    with serving(mock(), Switch(), CARDS_IN_THREES, allowed_hosts=(*LOCAL, "Box.example:80")) as running:
        yield running


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *[(host, 200) for host in ("localhost", "LOCALHOST:8000", "localhost.:1", "127.0.0.1:80", "[::1]:80", "[::1]", "::1")],
        *[(host, 200) for host in ("box.example", "box.example:8000")],
        *[(host, 403) for host in ("evil.example", "localhost.evil.example:8000", "evil.example:127", "127.0.0.1.nip.io")],
        *[(host, 403) for host in ("[::1", "[", "box.example@evil.example", "1.2.3.4", "a:b:c")],
    ],
)
@pytest.mark.parametrize("path", ["/health", "/v1/models"])
def test_a_local_server_answers_for_its_own_names_only(local: Running, host: str, status: int, path: str) -> None:
    answer = httpx.get(local.url + path, headers={"Host": host}, timeout=60)
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["error"]["code"] == "host_not_allowed"
        assert repr(host) in answer.json()["error"]["message"]


def test_names_of_hosts() -> None:
    assert [host_name(host) for host in ("A.b:1", "[::1]:2", "::1", "", "[")] == ["a.b", "::1", "::1", "", ""]
    with pytest.raises(SettingError, match="allowed_hosts must be a list"):
        ServerOptions(allowed_hosts="localhost")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "hosts"),
    [
        ((), LOCAL),
        (("--host", "localhost", "--allowed-hosts", "box"), (*LOCAL, "box")),
        (("--api-key", "k"), ()),
        (("--host", "0.0.0.0"), ()),
        (("--host", "0.0.0.0", "--allowed-hosts", "box"), ("box",)),
    ],
)
def test_only_a_local_server_without_keys_checks_hosts_by_default(
    arguments: tuple[str, ...], hosts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ServerOptions] = []

    def see(entries: object, options: ServerOptions, tracing: object) -> None:
        seen.append(options)

    monkeypatch.setattr("cards.serve.app.make_catalog_app", see)
    monkeypatch.setattr("cards.serve.server.bind", lambda host, port: None)
    monkeypatch.setattr("cards.serve.server.run", lambda *_: None)
    monkeypatch.setattr("cards.serve.logs.configure", lambda: None)
    monkeypatch.setattr("cards.cli.serve_models.LoadedModels.load", lambda *_: [])
    monkeypatch.delenv("CARDS_SERVE_API_KEY", raising=False)
    ran = CliRunner().invoke(cards.cli.app, ["serve", "--port", "0", "--no-playground", "--method", "vanilla", *arguments])
    assert ran.exit_code == 0, ran.output
    assert seen[0].allowed_hosts == hosts


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("cards.serve.keys.time.monotonic", lambda: self.now)


def test_an_address_that_guesses_has_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, known = Clock(monkeypatch), Keys(["right", "other"])
    assert known.name_of("right", "a")
    for guess in range(MAX_WRONG):
        assert not known.name_of(f"guess {guess}", "a")
    for key in ("one more", "other"):  # right or not
        with pytest.raises(ApiError) as caught:
            known.name_of(key, "a")
        assert (caught.value.status_code, caught.value.headers) == (429, {"Retry-After": str(WAIT)})
    assert known.name_of("right", "a")  # used before
    assert known.name_of("other", "b")  # from elsewhere
    clock.now += WAIT
    assert known.name_of("other", "a")


def test_the_same_wrong_key_is_no_guess() -> None:
    known = Keys(["right"])
    for _ in range(5 * MAX_WRONG):
        assert not known.name_of_session("stale", "a")
        assert not known.name_of_header("Bearer old", "a")
        assert not known.name_of_header("", "a")
    assert known.name_of("right", "a")


def test_addresses_in_memory_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "MAX_ADDRESSES", 3)
    known = Keys(["right"])
    for address in "abcdef":
        assert not known.name_of("wrong", address)
    assert list(known.tries) == ["d", "e", "f"]


def test_guesses_in_headers_cookies_and_logins_count_together() -> None:
    with serving(mock(), Switch(), CARDS_IN_THREES, api_keys=("first", "second"), playground=True) as running:
        url = running.url
        for i in range(3):
            assert httpx.post(f"{url}/login", data={"key": f"a{i}"}).status_code == 401
            assert httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer b{i}"}).status_code == 401
            assert httpx.get(f"{url}/config", cookies={keys.COOKIE: f"c{i}"}).status_code == 401
        assert httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer d"}).status_code == 401
        for answer in (
            httpx.post(f"{url}/login", data={"key": "first"}),
            httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer first"}),
        ):
            assert answer.status_code == 429
            assert answer.json()["error"]["code"] == "too_many_keys"
            assert answer.headers["retry-after"] == str(WAIT)
        assert httpx.get(f"{url}/health").status_code == 200


@pytest.fixture
def chats(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Running, list[Any]]]:
    """A server with defaults, and the prompts that its engine got."""
    engine, prompts = mock(), list[Any]()
    encode = engine.encode

    def recorded(prompt: str | Sequence[Message]) -> Prompt:
        prompts.append(prompt)
        return encode(prompt)

    monkeypatch.setattr(engine, "encode", recorded)
    variables = '{"enable_thinking": false, "style": "short"}'
    with serving(engine, Switch(), CARDS_IN_THREES, system="Be brief.", chat_template_kwargs=variables) as running:
        prompts.clear()  # one is encoded at the start
        yield running, prompts


@pytest.mark.parametrize(
    ("body", "messages", "variables"),
    [
        ({"messages": [USER]}, [SYSTEM, USER], {"enable_thinking": False, "style": "short"}),
        ({"messages": [{**SYSTEM, "content": "Be kind."}, USER]}, [{**SYSTEM, "content": "Be kind."}, USER], None),
        ({"messages": [{"role": "developer", "content": "Be kind."}, USER]}, [{**SYSTEM, "content": "Be kind."}, USER], None),
        (
            {"messages": [USER], "chat_template_kwargs": {"enable_thinking": True}},
            [SYSTEM, USER],
            {"enable_thinking": True, "style": "short"},
        ),
    ],
)
def test_a_chat_has_the_server_s_defaults_unless_it_has_its_own(
    chats: tuple[Running, list[Any]], body: dict[str, Any], messages: list[Any], variables: dict[str, Any] | None
) -> None:
    running, prompts = chats
    answer = running.post("/v1/chat/completions", json={**body, "max_tokens": 3})
    assert answer.status_code == 200, answer.text
    [chat] = prompts
    assert isinstance(chat, Chat)
    assert list(chat) == messages
    assert chat.chat_template_kwargs == (variables or {"enable_thinking": False, "style": "short"})


def test_raw_text_has_no_defaults(chats: tuple[Running, list[Any]]) -> None:
    running, prompts = chats
    assert running.post(json={"prompt": "abc", "max_tokens": 3}).status_code == 200
    assert prompts == ["abc"]


def test_defaults_that_the_template_cannot_use_are_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = mock()
    monkeypatch.setattr(engine, "chats", False)
    with pytest.raises(PromptError, match="no chat template"):
        make_app(engine, Switch(), CARDS_IN_THREES, ServerOptions(system="Be brief."))
    with pytest.raises(SettingError, match="must be a JSON object"):
        ServerOptions(chat_template_kwargs="[]")
