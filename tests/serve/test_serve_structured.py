"""Structured output, biases and penalties of a server: the same responses as in Python, by all names that clients use."""

from __future__ import annotations

import json
from typing import Any

import pytest
from helpers.running_server import CHAT, Running

from cards import Decoder
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.grammar import Grammar
from cards.methods import Vanilla
from cards.shaping import Shaping

pytest.importorskip("llguidance")
pytestmark = pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
Pair = tuple[TransformersEngine, ClassifierReward]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "good": {"type": "boolean"}},
    "required": ["name", "good"],
    "additionalProperties": False,
}
PATTERN = " [a-z]{2,8}( [a-z]{1,6}){2}"
STRICT = {"type": "json_schema", "json_schema": {"name": "dog", "strict": True, "schema": SCHEMA}}
LARK = 'start: " " WORD " " WORD\nWORD: /[a-z]{2,5}/'
REQUESTS: list[tuple[dict[str, Any], Grammar]] = [
    ({"response_format": STRICT}, Grammar.json_schema(SCHEMA)),
    ({"response_format": {"type": "json_object"}}, Grammar.json_object()),
    ({"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}}, Grammar.json_schema(SCHEMA, whitespace=False)),
    ({"structured_outputs": {"regex": PATTERN, "json": None}}, Grammar.regex(PATTERN)),
    ({"structured_outputs": {"choice": [" yes", " no"]}}, Grammar.choice([" yes", " no"])),
    ({"structured_outputs": {"grammar": LARK}}, Grammar.lark(LARK)),
    ({"guided_json": json.dumps(SCHEMA)}, Grammar.json_schema(SCHEMA)),
    ({"guided_regex": PATTERN}, Grammar.regex(PATTERN)),
    ({"guided_choice": [" yes", " no"]}, Grammar.choice([" yes", " no"])),
    ({"guided_grammar": LARK}, Grammar.lark(LARK)),
]


@pytest.mark.parametrize(("fields", "grammar"), REQUESTS, ids=lambda value: str(value)[:40])
def test_grammars_of_clients_are_those_of_python(
    tiny: Running, embedded: Pair, fields: dict[str, Any], grammar: Grammar
) -> None:
    answer = tiny.post(json={"prompt": "My dog is", "max_tokens": 60, "seed": 2, "cards": {"method": "vanilla"}, **fields})
    expected = Decoder(embedded[0], None, Vanilla())("My dog is", max_tokens=60, seed=2, grammar=grammar)
    [choice] = answer.json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == (expected.text, expected.finish_reason)


def test_biases_and_penalties_are_those_of_python(tiny: Running, embedded: Pair) -> None:
    penalties: dict[str, Any] = {"presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 1.2}
    body = {"prompt": "The movie", "max_tokens": 20, "seed": 2, "cards": {"method": "vanilla"}, **penalties}
    answer = tiny.post(json=body | {"logit_bias": {"300": -5, "12": 2}}).json()
    shaping = Shaping(None, ((300, -5.0), (12, 2.0)), **penalties)
    decoder = Decoder(embedded[0], None, Vanilla())
    expected = decoder("The movie", max_tokens=20, seed=2, shaping=shaping)
    assert answer["choices"][0]["text"] == expected.text
    assert expected.text != decoder("The movie", max_tokens=20, seed=2).text


@pytest.mark.parametrize("method", ["cards", "best-of-n", "smc", "args"])
def test_every_chat_is_json_that_follows_its_schema(tiny: Running, method: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    client: Any = tiny.client().chat.completions
    for seed in range(3):
        answer = client.create(
            model="tiny",
            messages=CHAT,
            max_tokens=64,
            seed=seed,
            response_format=STRICT,
            extra_body={"cards": {"method": method}},
        )
        [choice] = answer.choices
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content or ""), SCHEMA)


def test_streams_and_the_responses_api_have_the_same_text(tiny: Running) -> None:
    client: Any = tiny.client()
    options: dict[str, Any] = {"model": "tiny", "seed": 5}
    chat = {"messages": CHAT, "max_tokens": 60, "response_format": STRICT}
    whole = client.chat.completions.create(**options, **chat)
    parts = client.chat.completions.create(**options, **chat, stream=True)
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == whole.choices[0].message.content
    form = {"type": "json_schema", "name": "dog", "schema": SCHEMA, "strict": True}
    body = {**options, "input": CHAT, "max_output_tokens": 60, "text": {"format": form}}
    answer = tiny.post("/v1/responses", json=body).json()
    assert answer["output"][0]["content"][0]["text"] == text
    assert answer["text"]["format"] == form
