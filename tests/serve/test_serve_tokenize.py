"""Texts and messages are split into tokens as requests are."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.mock_models import CARDS_IN_THREES, mock
from helpers.running_server import CHAT, Running, Switch, serving

from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.prompts import Chat

Pair = tuple[TransformersEngine, ClassifierReward]


def tokenize(running: Running, **body: Any) -> Any:
    return running.post("/tokenize", json=body).json()


def test_tokens_are_those_of_requests(tiny: Running, embedded: Pair) -> None:
    engine = embedded[0]
    found = tokenize(tiny, model="tiny", prompt="The movie was", return_token_strs=True)
    ids = list(engine.encode("The movie was").token_ids)
    assert found == {
        "count": len(ids),
        "max_model_len": engine.context,
        "tokens": ids,
        "token_strs": engine.tokenizer.convert_ids_to_tokens(ids),
    }
    assert tiny.post("/detokenize", json={"tokens": ids}).json() == {"prompt": "The movie was"}
    assert tokenize(tiny, messages=CHAT)["tokens"] == list(engine.encode(CHAT).token_ids)
    turns = [*CHAT, {"role": "assistant", "content": "It was"}]
    continued = tokenize(tiny, messages=turns, continue_final_message=True, add_generation_prompt=False)
    assert continued["tokens"] == list(engine.encode(Chat(turns, {}, continued=True)).token_ids)
    closed = tokenize(tiny, messages=CHAT, add_generation_prompt=False)
    assert tokenize(tiny, messages=CHAT)["count"] > closed["count"]
    assert tokenize(tiny, prompt="")["tokens"] == []


def test_engines_without_a_library_of_tokens_can_do_it_too() -> None:
    with serving(mock(), Switch(), CARDS_IN_THREES, system="ab") as running:
        assert tokenize(running, prompt="abc", return_token_strs=True)["token_strs"] == ["a", "b", "c"]
        assert running.post("/detokenize", json={"tokens": [0, 1]}).json() == {"prompt": "ab"}
        assert tokenize(running, messages=[{"role": "user", "content": "abc"}])["count"] > 5  # with the system message


def test_the_tokenizer_is_described(tiny: Running, embedded: Pair) -> None:
    tokenizer: Any = embedded[0].tokenizer
    found = tiny.get("/tokenizer_info").json()
    assert (found["eos_token"], found["chat_template"]) == (tokenizer.eos_token, tokenizer.chat_template)
    assert tiny.get("/tokenizer_info?model=none").status_code == 404
    with serving(mock(), Switch(), CARDS_IN_THREES) as running:
        assert set(running.get("/tokenizer_info").json().values()) == {None}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": CHAT}, "prompt"),
        (
            "/tokenize",
            {"messages": CHAT, "continue_final_message": True, "add_generation_prompt": True},
            "add_generation_prompt",
        ),
        ("/tokenize", {"prompt": "a", "prmpt": "b"}, "prmpt"),
        ("/tokenize", {"prompt": "a", "model": "other"}, "model"),
        ("/tokenize", {"prompt": "word " * 20_000}, "prompt"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [10**6]}, None),
        ("/tokenize", {"messages": CHAT, "chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools"),
    ],
)
def test_bad_requests_are_named(tiny: Running, path: str, body: dict[str, Any], param: str | None) -> None:
    answer = tiny.post(path, json=body)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param
