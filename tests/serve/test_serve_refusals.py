"""What a client may not do is refused at once, in OpenAI's words, and never by a crash."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from helpers.mock_models import CARDS_IN_THREES, mock
from helpers.running_server import CHAT, Running, Switch, assert_free, serving, until

from cards.backends.local.engine import TransformersEngine
from cards.errors import SettingError
from cards.methods import BestOfN, Cascade
from cards.serve.options import ServerOptions

pytestmark = pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"max_tokens": 65}, "max_tokens", "at most 64"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"temperature": -1}, "temperature", "greater"),
        ({"temperature": "warm"}, "temperature", "number"),
        ({"top_p": 0}, "top_p", "greater"),
        ({"seed": -2}, "seed", "greater"),
        ({"n": 33}, "n", "at most 32"),
        ({"stop": ""}, "stop", "at least 1"),
        ({"stop": ["x" * 257]}, "stop", "at most 256"),
        ({"stop": ["x"] * 17}, "stop", "at most 16"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": []}, "prompt", "at least 1"),
        ({"prompt": [1.5]}, "prompt", "string"),
        ({"prompt": [1, "x"]}, "prompt", "integer"),
        ({"prompt": [[1], []]}, "prompt", "at least 1"),
        ({"prompt": [5000]}, "prompt", "token id 5000"),
        ({"prompt": "word " * 600}, "prompt", "context"),
        ({"prompt": "half \ud800 a character"}, "prompt", "surrogate"),
        ({"max_tokens": -1, "echo": True}, "max_tokens", "greater than or equal to 0"),
        ({"top_k": -2}, "top_k", "greater"),
        ({"min_p": 1.5}, "min_p", "less"),
        ({"logit_bias": {"x": 2}}, "logit_bias", "token ids"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "less"),
        ({"logit_bias": {"1": 2, "01": 3}}, "logit_bias", "twice"),
        ({"logit_bias": {"5000": 2}}, None, "token id 5000"),
        ({"frequency_penalty": 2.5}, "frequency_penalty", "less"),
        ({"presence_penalty": "much"}, "presence_penalty", "number"),
        ({"repetition_penalty": 0}, "repetition_penalty", "greater"),
        ({"response_format": "json"}, "response_format", "must be an object"),
        ({"response_format": {"type": "yaml"}}, "response_format", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}}, "response_format", '"not"'),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": "\ud800"}}}},
            "response_format",
            "surr",
        ),
        ({"structured_outputs": {"regex": "[a"}}, "structured_outputs", "unclosed"),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs", "'regex'"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "one of"),
        ({"structured_outputs": {"choice": [3]}}, "structured_outputs", "texts"),
        ({"structured_outputs": {"grammar": "start: x"}}, "structured_outputs", "line 1, column 8"),
        ({"guided_regex": "a" * 70000}, "guided_regex", "at most 65536"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice", "both"),
        ({"logprobs": 21}, "logprobs", "20"),
        ({"temprature": 1}, "temprature", "'temperature'"),
        ({"cards": {"metod": "vanilla"}}, "cards.metod", "'method'"),
        ({"cards": {"method": "vanila"}}, None, "'vanilla'"),
        ({"cards": {"method": "rsd"}}, None, "need models"),
        ({"cards": {"settings": {"bta": 1}}}, None, "'beta'"),
        ({"cards": {"settings": {"beta": "cold"}}}, None, "beta"),
        ({"cards": {"settings": {"beta": -1}}}, None, "beta"),
        ({"cards": {"settings": {"max_rejections": 257}}}, None, "at most 256"),
        ({"cards": {"settings": {"boundary": "line"}}}, None, "boundary"),
        ({"cards": {"settings": {"boundary": "fixed:99999999999"}}}, None, "at most 1024"),
        ({"cards": {"settings": {"n": 65}, "method": "best-of-n"}}, None, "at most 64"),
        ({"cards": {"method": "self-consistency", "settings": {"pattern": "(a+)+$"}}}, None, "set by the server"),
        ({"cards": {"settings": {"temperature": 1}}, "temperature": 1}, "temperature", "twice"),
        ({"seed": True}, "seed", "integer"),
        ({"max_tokens": True}, "max_tokens", "integer"),
        ({"temperature": True}, "temperature", "number"),
        ({"stream": 1}, "stream", "boolean"),
        ({"stream_options": {"include_usge": True}}, "stream_options.include_usge", "'include_usage'"),
        ({"cards": {"settings": {"beta": True}}}, None, "number"),
        ({"cards": {"settings": {"max_rejections": True}}}, None, "integer"),
        ({"cards": {"deadline": 0}}, "cards", "greater"),
        ({"cards": 3}, "cards", "dictionary"),
    ],
)
def test_a_bad_request_is_named(tiny: Running, more: dict[str, Any], param: str | None, words: str) -> None:
    body = {"model": "tiny", "prompt": "The movie was", "max_tokens": 4, **more}
    answer = tiny.post(content=json.dumps(body), headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == 400, error
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert words in error["message"]


def test_neutral_and_harmless_fields_of_openai_pass(tiny: Running) -> None:
    harmless = {"frequency_penalty": 0, "logit_bias": {}, "user": "somebody", "best_of": 1, "echo": False, "suffix": None}
    assert tiny.post(json={"model": "tiny", "prompt": "Hi", "max_tokens": 2, **harmless}).status_code == 200


@pytest.mark.parametrize("messages", [[], [{"role": "tool", "content": "x"}], [{"role": "user", "content": None}]])
def test_a_bad_conversation_is_named(tiny: Running, messages: list[Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        tiny.client().chat.completions.create(model="tiny", messages=messages)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"bogus": 1}, "messages.0.bogus"),
        ({"contents": "x"}, "messages.0.contents"),
        ({"tool_calls": [{"id": "1"}]}, "messages.0.tool_calls"),
        ({"content": [{"type": "text", "text": "Hi", "bogus": 1}]}, "messages.0.content.0.bogus"),
    ],
)
def test_an_unknown_field_of_a_message_is_named(tiny: Running, message: dict[str, Any], param: str) -> None:
    answer = tiny.post(
        "/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi", **message}], "max_tokens": 2}
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_message_of_a_response_can_be_sent_back(tiny: Running) -> None:
    create: Any = tiny.client().chat.completions.create
    message = create(model="tiny", messages=CHAT, max_tokens=2).choices[0].message.model_dump()
    assert create(model="tiny", messages=[*CHAT, message, *CHAT], max_tokens=2, stream_options={"include_obfuscation": False})


def test_too_many_messages_or_parts_are_refused(tiny: Running) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": ""}] * 60}] * 60
    for messages in (CHAT * 3000, parts):
        answer = tiny.post("/v1/chat/completions", json={"messages": messages})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")


def test_a_seed_of_minus_one_is_a_new_seed(tiny: Running) -> None:
    choices = [tiny.post(json={"prompt": "Hi", "max_tokens": 2, "seed": -1}).json()["choices"][0] for _ in range(2)]
    seeds = [choice["cards"]["seed"] for choice in choices]
    assert seeds[0] != seeds[1]
    assert min(seeds) >= 0


@pytest.mark.parametrize(
    "body",
    [
        {"x" * 300_000: 1},
        {"model": "x" * 300_000},
        {"cards": {"method": "x" * 300_000}},
        {"cards": {"settings": {"x" * 300_000: 1}}},
        {"cards": {"settings": {"beta": "x" * 300_000}}},
        {"cards": {"settings": {"beta": [1] * 100_000}}},
        {"stop": ["x" * 300_000]},
    ],
    ids=range(7),
)
def test_no_refusal_echoes_a_huge_value(tiny: Running, body: dict[str, Any]) -> None:
    answer = tiny.post(json={"prompt": "Hi", **body})
    assert answer.status_code in (400, 404)
    assert len(answer.content) < 5000


def test_unknown_urls_are_told_in_openais_form_also_beside_the_playground() -> None:
    for playground in (False, True):
        with serving(mock(), Switch(), CARDS_IN_THREES, playground=playground) as running:
            for answer in (running.get("/v1/nothing"), running.post("/v1/embeddings", json={})):
                error = answer.json()["error"]
                assert (answer.status_code, error["type"], error["code"]) == (404, "invalid_request_error", "unknown_url")
            wrong = running.get("/v1/completions")
            assert (wrong.status_code, wrong.headers["Allow"], wrong.json()["error"]["code"]) == (405, "POST", "unknown_url")


def test_listed_methods_run_with_the_settings_of_the_server(reward: Switch) -> None:
    reward.target = None  # type: ignore[assignment]
    for target, runs in ((1.0, True), (None, False)):
        method = CARDS_IN_THREES if target else BestOfN(n=2)
        with serving(mock(), reward, method, deadline=5.0) as running:
            listed = running.get("/v1/models").json()["data"][0]["cards"]["methods"]
            assert ("stars" in listed) == ("rad" in listed) == runs
            for name in listed:
                answer = running.post(json={"prompt": "abc", "max_tokens": 2, "cards": {"method": name}})
                assert answer.status_code == 200, (name, answer.text)
            settings = {"target": 1.0}
            answer = running.post(json={"prompt": "abc", "max_tokens": 2, "cards": {"method": "stars", "settings": settings}})
            assert answer.status_code == 200


def test_another_model_is_not_found(tiny: Running) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        tiny.client().completions.create(model="gpt-4", prompt="Hi")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        tiny.client().models.retrieve("gpt-4")
    assert tiny.get("/nowhere").json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "required"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"prompt": "\xc3\x28"}', "parsing"),
        (b'{"prompt": ' + b"[" * 9000 + b"]" * 9000 + b"}", "parsing"),
        (b'{"prompt": "a", "cards": {"settings": {"beta": NaN}}}', "beta"),
        (b'{"prompt": "a", "temperature": Infinity}', "temperature"),
        (b'"text"', "dictionary"),
    ],
    ids=range(8),
)
def test_garbage_is_refused(mocked: Running, content: bytes, words: str) -> None:
    answer = mocked.post(content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_what_is_no_http_at_all_harms_nobody(mocked: Running) -> None:
    with socket.create_connection(("127.0.0.1", mocked.port), timeout=60) as opened:
        opened.sendall(b"\x16\x03\x01 not http \x00\xff\r\n\r\n")
        assert opened.recv(4096).startswith(b"HTTP/1.1 400")
    assert mocked.get("/health").status_code == 200


def test_a_large_body_is_refused_before_it_is_read(mocked: Running) -> None:
    large = json.dumps({"prompt": "a" * 10_000_000}).encode()
    answer = mocked.post(content=large, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    with socket.create_connection(("127.0.0.1", mocked.port), timeout=60) as opened:  # the answer comes without the body
        opened.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000\r\n\r\n")
        assert opened.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_large_body_of_unknown_length_is_refused_when_it_is_too_long(mocked: Running) -> None:
    answer = mocked.post(content=iter([b"x" * 15_000] * 3), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"


def test_a_body_that_does_not_arrive_is_not_waited_for() -> None:
    with serving(mock(), Switch(), CARDS_IN_THREES, read_timeout=0.2) as running:
        with socket.create_connection(("127.0.0.1", running.port), timeout=60) as opened:
            opened.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
            assert opened.recv(4096).startswith(b"HTTP/1.1 408")
            until(lambda: opened.recv(4096) == b"")  # and the connection ends
        assert_free(running)


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    with serving(mock(), Switch(), CARDS_IN_THREES, api_keys=("first", "second"), cors=("https://page.example",)) as running:
        yield running


@pytest.mark.parametrize("key", ["wrong", "firs", "first2", "\xfcmlaut"])
def test_a_wrong_key_is_refused(locked: Running, key: str) -> None:
    answer = locked.post(json={"prompt": "a"}, headers={"Authorization": f"Bearer {key}".encode("latin-1")})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_keys_let_in_and_their_absence_does_not(locked: Running) -> None:
    for key in ("first", "second"):
        answer = locked.client(key).completions.create(model="mock", prompt="a", max_tokens=2)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 2
    with pytest.raises(openai.AuthenticationError):
        locked.client("third").models.list()
    assert locked.get("/openapi.json").status_code == 401
    assert [locked.get(path).status_code for path in ("/health", "/ready", "/metrics")] == [200, 200, 200]


def test_only_the_origins_named_may_call(locked: Running, mocked: Running) -> None:
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    preflight = httpx.options(f"{locked.url}/v1/completions", headers=asked)
    assert preflight.headers["access-control-allow-origin"] == "https://page.example"
    assert "access-control-allow-origin" not in httpx.get(f"{mocked.url}/health", headers=asked).headers


def test_an_engine_without_probabilities_refuses_to_give_any(monkeypatch: pytest.MonkeyPatch, mocked: Running) -> None:
    monkeypatch.setattr(mocked.service.engine, "has", frozenset({"segments"}))
    assert mocked.post(json={"prompt": "a", "logprobs": 0}).json()["error"]["param"] == "logprobs"
    create: Any = mocked.client().chat.completions.create
    with pytest.raises(openai.BadRequestError, match="no log-probabilities"):
        create(model="mock", messages=CHAT, logprobs=True)


def test_what_a_method_does_not_have_is_refused(mocked: Running) -> None:
    answer = mocked.post(json={"prompt": "a", "top_p": 0.9, "cards": {"method": "args"}})
    assert answer.status_code == 400
    assert "'top_p'" in answer.json()["error"]["message"]


def test_methods_get_models_from_the_servers_own_alone(embedded: tuple[TransformersEngine, Any]) -> None:
    engine, reward = embedded
    with serving(engine, reward, Cascade(guide=reward), limit_tokens=64) as running:
        offered = running.service.methods.offered
        assert "tree-bon" in offered
        assert offered["tree-bon"].guide is reward  # type: ignore[attr-defined]
        answer = running.post(json={"prompt": "Hi", "max_tokens": 4, "cards": {"settings": {"guide_beta": 0.5}}})
        assert answer.json()["cards"]["method"] == "cascade"


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"deadline": -1},
        {"max_queue": -1},
        {"keep_alive": 0},
        {"api_keys": ("",)},
        {"api_keys": ("first second",)},
        {"api_keys": ("key\n",)},
        {"api_keys": ("\xfcmlaut",)},
        {"api_keys": (1234,)},
        {"api_keys": "secret"},  # not six keys of one letter
        {"cors": "*"},
    ],
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        ServerOptions(**options)


def test_a_refusal_without_a_key_names_the_scheme(locked: Running) -> None:
    answer = locked.get("/v1/models")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="cards"'


def test_pages_of_allowed_origins_can_read_the_headers_and_the_errors(locked: Running) -> None:
    origin = {"Origin": "https://page.example"}
    for headers in (origin, {**origin, "Authorization": "Bearer first"}):
        answer = httpx.get(f"{locked.url}/v1/models", headers=headers)
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"Retry-After", "X-Cards-Aligned", "X-Request-ID"} <= {*exposed}


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/v1/models", "/v1/models/mock", "/openapi.json"])
def test_head_is_answered_like_get_without_a_body(mocked: Running, path: str) -> None:
    head, get = httpx.head(mocked.url + path), mocked.get(path)
    assert head.status_code == get.status_code == 200
    assert head.headers["content-type"] == get.headers["content-type"]
    assert head.content == b""
    assert httpx.head(mocked.url + "/v1/completions").status_code == 405


def test_no_page_loads_anything_from_other_hosts(mocked: Running) -> None:
    assert [mocked.get(path).status_code for path in ("/docs", "/redoc")] == [404, 404]
