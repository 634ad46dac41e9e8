"""OpenAI's Responses API gives what chats give."""

from __future__ import annotations

import json
from typing import Any

import pytest
from helpers.mock_models import CARDS_IN_THREES, mock
from helpers.running_server import CHAT, Running, Switch, serving

from cards.serve.responses_format import ResponsesAnswer

pytestmark = pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
QUESTION = CHAT[0]["content"]


def respond(running: Running, **more: Any) -> Any:
    given = {"model": "tiny", "input": QUESTION, "max_output_tokens": 12, "extra_body": {"seed": 5}, **more}
    return running.client().responses.create(**given)


def chat(running: Running, messages: Any = CHAT) -> Any:
    return running.client().chat.completions.create(model="tiny", messages=messages, max_tokens=12, seed=5)


def test_a_response_is_that_of_the_chat(tiny: Running) -> None:
    answer, expected = respond(tiny), chat(tiny)
    [choice] = expected.choices
    assert answer.output_text == choice.message.content
    assert answer.status == {"stop": "completed", "length": "incomplete"}[choice.finish_reason]
    assert answer.cards["reward"] == pytest.approx(choice.cards["reward"], rel=1e-5)  # read in other batches
    assert [one["text"] for one in answer.cards["segments"]] == [one["text"] for one in choice.cards["segments"]]
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (
        expected.usage.prompt_tokens,
        expected.usage.completion_tokens,
    )
    assert answer.usage.input_tokens_details.cached_tokens <= answer.usage.input_tokens


def test_input_can_be_items_and_the_output_of_a_response(tiny: Running) -> None:
    first = respond(tiny, instructions="Be kind.")
    turns: Any = [{"role": "system", "content": "Be kind."}, *CHAT]
    assert first.output_text == chat(tiny, turns).choices[0].message.content
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
        first.output[0].model_dump(),
        {"type": "message", "role": "user", "content": "Why?"},
    ]
    second = respond(tiny, instructions="Be kind.", input=items)
    turns += [{"role": "assistant", "content": first.output_text}, {"role": "user", "content": "Why?"}]
    assert second.output_text == chat(tiny, turns).choices[0].message.content


@pytest.mark.parametrize("trace", [False, True])
def test_a_stream_has_the_events_of_openai(tiny: Running, trace: bool) -> None:
    body = {"seed": 5, "cards": {"trace": trace}}
    whole = respond(tiny, extra_body=body)
    events = list(respond(tiny, stream=True, extra_body=body))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        f"response.{whole.status}",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == whole.output_text == events[-1].response.output_text
    assert [event.cards["segment"]["text"] for event in deltas] == [one["text"] for one in whole.cards["segments"]]
    assert bool(events[-1].response.cards.get("trace")) == trace
    assert events[-1].response.usage.output_tokens == whole.usage.output_tokens
    with tiny.client().responses.stream(model="tiny", input=QUESTION, extra_body={"seed": 5, "max_tokens": 12}) as stream:
        assert stream.get_final_response().output_text == whole.output_text


def test_log_probabilities_are_included_on_demand(tiny: Running) -> None:
    answer = respond(tiny, include=["message.output_text.logprobs"], top_logprobs=2)
    found = answer.output[0].content[0].logprobs
    assert "".join(token.token for token in found) == answer.output_text
    assert {len(token.top_logprobs) for token in found} == {2}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "whole conversation"),
        ({"conversation": "c"}, "conversation", "not supported"),
        ({"background": True}, "background", "not supported"),
        ({"tools": [{"type": "web_search"}]}, "tools", "tool_choice"),
        ({"include": ["file_search_call.results"]}, "include", "message.output_text.logprobs"),
        ({"input": []}, "input", "at least 1"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}, "input", "message"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input", "input_text"),
        ({"input": [{"role": "user", "content": "x", "odd": 1}]}, "input.0.odd", "odd"),
        ({"input": ""}, "messages", "empty"),
        ({"instruction": "x"}, "instruction", "'instructions'"),
        ({"n": 2}, "n", "1"),
        ({"text": {"format": {"type": "telepathy"}}}, "response_format", "telepathy"),
        ({"text": {"verbosity": "high"}}, "text.verbosity", "not supported"),
    ],
)
def test_a_bad_request_is_named(tiny: Running, fields: dict[str, Any], param: str, words: str) -> None:
    answer = tiny.post("/v1/responses", json={"input": "Hi", "max_output_tokens": 2, **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert words in answer.json()["error"]["message"]


def test_a_stream_whose_reward_fails_ends_with_that_event() -> None:
    reward = Switch()
    reward.good = 2
    with serving(mock(), reward, CARDS_IN_THREES) as running:
        told = running.post("/v1/responses", json={"input": "abc", "stream": True, "max_output_tokens": 12}).text
    last = json.loads(told.strip().splitlines()[-1].removeprefix("data: "))
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"]["code"] == "reward_failed"


def test_the_schema_has_every_field(tiny: Running) -> None:
    body = {"input": "Hi", "max_output_tokens": 4, "include": ["message.output_text.logprobs"], "top_logprobs": 1}
    answer = tiny.post("/v1/responses", json=body).json()
    assert ResponsesAnswer.model_validate(answer).model_dump(exclude_unset=True) == answer
