"""Fields of requests that vLLM has, and what the server does with fields that it does not know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from helpers.mock_models import CARDS_IN_THREES, mock
from helpers.running_server import CHAT, Running, Switch, serving

from cards import Decoder
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.methods import Vanilla
from cards.prompts import Chat

pytestmark = pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
Pair = tuple[TransformersEngine, ClassifierReward]
PLAIN = {"cards": {"method": "vanilla"}}


@pytest.fixture(scope="module")
def tolerant() -> Iterator[Running]:
    with serving(mock(), Switch(), CARDS_IN_THREES, unknown_fields="ignore") as running:
        yield running


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({"top_k": 3}, {"top_k": 3}),
        ({"top_k": -1}, {"top_k": None}),
        ({"top_k": 0, "min_p": 0.2}, {"top_k": None, "min_p": 0.2}),
    ],
)
def test_sampling_fields_are_settings_of_the_method(
    tiny: Running, embedded: Pair, fields: dict[str, Any], settings: dict[str, Any]
) -> None:
    answer = tiny.post(json={"prompt": "The movie", "max_tokens": 12, "seed": 2, **PLAIN, **fields}).json()
    expected = Decoder(embedded[0], None, Vanilla(**settings))("The movie", max_tokens=12, seed=2)
    assert answer["choices"][0]["text"] == expected.text


def test_the_last_message_can_be_continued(tiny: Running, embedded: Pair) -> None:
    turns = [*CHAT, {"role": "assistant", "content": "I think it was"}]
    body = {"messages": turns, "max_tokens": 8, "seed": 4, "continue_final_message": True, "add_generation_prompt": False}
    [choice] = tiny.post("/v1/chat/completions", json=body).json()["choices"]
    expected = Decoder(*embedded, "cards")(Chat(turns, {}, continued=True), max_tokens=8, seed=4)
    assert choice["message"]["content"] == expected.text
    assert choice["cards"]["reward"] == pytest.approx(expected.reward, abs=1e-4)
    for wrong in ({"add_generation_prompt": True}, {"continue_final_message": False}):
        answer = tiny.post("/v1/chat/completions", json=body | wrong)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "add_generation_prompt")
    refused = tiny.post("/v1/chat/completions", json={"messages": CHAT, "continue_final_message": True})
    assert refused.status_code == 400
    assert "assistant" in refused.json()["error"]["message"]


def test_cached_tokens_are_those_of_the_prompt_that_an_earlier_request_left(tiny: Running) -> None:
    body = {"prompt": "A sentence that no other test has: seven green kettles.", "max_tokens": 4, "seed": 1}
    first, second = (tiny.post(json=body).json()["usage"] for _ in range(2))
    assert first["prompt_tokens_details"] == {"cached_tokens": 0}
    assert second["prompt_tokens"] - 1 <= second["prompt_tokens_details"]["cached_tokens"] <= second["prompt_tokens"]
    several = tiny.post(json=body | {"n": 3}).json()["usage"]
    assert several["prompt_tokens_details"]["cached_tokens"] <= several["prompt_tokens"]


def test_the_fingerprint_depends_on_models_and_method() -> None:
    def fingerprint(name: str, method: Any) -> str:
        engine = mock()
        engine.name = name
        with serving(engine, Switch(), method) as running:
            one, other = (running.post(json={"prompt": "a", "max_tokens": 2}).json()["system_fingerprint"] for _ in range(2))
            assert one == other
            return str(one)

    found = [fingerprint("one", CARDS_IN_THREES), fingerprint("two", CARDS_IN_THREES), fingerprint("one", Vanilla())]
    assert len(set(found)) == 3


def test_unknown_fields_are_refused_or_ignored(tiny: Running, tolerant: Running) -> None:
    body = {"prompt": "abc", "max_tokens": 3, "extra_body": {"top_k": 1}, "stream_options": {"odd": 1}}
    refused = tiny.post(json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "extra_body")
    answer = tolerant.post(json=body).json()
    assert answer["cards"]["ignored"] == ["extra_body", "stream_options.odd"]
    chat = {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "odd": 1}], "odd": 2}], "max_tokens": 3}
    answer = tolerant.post("/v1/chat/completions", json=chat).json()
    assert answer["cards"]["ignored"] == ["messages.0.odd", "messages.0.content.0.odd"]
    assert "ignored" not in tolerant.post(json={"prompt": "abc", "max_tokens": 3}).json()["cards"]
    for wrong in ({"cards": {"odd": 1}}, {"tools": [{"type": "function"}]}, {"max_tokens": 0}):
        assert tolerant.post(json={"prompt": "abc", **wrong}).status_code == 400


def test_tools_are_refused_unless_no_tool_may_be_called(tiny: Running) -> None:
    body = {"messages": CHAT, "max_tokens": 2, "tools": [{"type": "function", "function": {"name": "f"}}]}
    answer = tiny.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
    assert "tool_choice" in answer.json()["error"]["message"]
    assert tiny.post("/v1/chat/completions", json=body | {"tool_choice": "none"}).status_code == 200
