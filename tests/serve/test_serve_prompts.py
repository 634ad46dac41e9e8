"""Prompts are tokenized in threads after admission, and those that are too long are refused before."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.mock_models import CARDS_IN_THREES, mock
from helpers.running_server import Running, Switch, assert_free, serving, until

from cards.engines.slot_engine import SlotEngine
from cards.events import Prompt
from cards.methods import Vanilla

BODY = {"prompt": "abc", "max_tokens": 3}


class Slow:
    """Replaces the `encode` of an engine: it waits while it is `held`, and records the threads and the gate."""

    def __init__(self, running: Running) -> None:
        self.running, self.encode = running, running.service.engine.encode
        self.go = threading.Event()
        self.calls: list[tuple[str, int]] = []

    def __call__(self, given: Any) -> Prompt:
        self.calls.append((threading.current_thread().name, self.running.service.gate.running))
        assert self.go.wait(60)
        return self.encode(given)


@pytest.fixture
def slow(mocked: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    slow = Slow(mocked)
    monkeypatch.setattr(mocked.service.engine, "encode", slow)
    yield slow
    slow.go.set()


def test_a_prompt_is_tokenized_in_a_thread_after_admission_while_the_server_answers_others(mocked: Running, slow: Slow) -> None:
    with mocked.send(BODY) as opened:
        until(lambda: slow.calls)
        assert mocked.get("/health").status_code == 200
        assert mocked.service.gate.running == 1
        slow.go.set()
        assert b"200 OK" in opened.recv(4096)
    [(thread, running)] = slow.calls
    assert thread.startswith("cards-tokenizing")
    assert running == 1


def test_each_prompt_is_tokenized_once_for_all_its_responses(mocked: Running, slow: Slow) -> None:
    slow.go.set()
    assert mocked.post(json=BODY | {"n": 2}).status_code == 200
    assert len(slow.calls) == 1
    assert mocked.post(json=BODY | {"prompt": ["ab", "ba"]}).status_code == 200
    assert len(slow.calls) == 3


def test_a_client_that_leaves_while_its_prompt_is_tokenized_frees_its_place(mocked: Running, slow: Slow) -> None:
    opened = mocked.send(BODY)
    until(lambda: slow.calls)
    opened.close()
    assert_free(mocked)


def test_the_deadline_holds_while_a_prompt_is_tokenized(mocked: Running, slow: Slow) -> None:
    answer = mocked.post(json=BODY | {"cards": {"deadline": 0.1}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "deadline")
    assert_free(mocked)


def test_a_prompt_with_too_many_characters_is_not_tokenized(tiny: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tiny.service.max_characters
    assert limit is not None
    monkeypatch.delattr(SlotEngine, "encode")
    for body in ({"prompt": "a" * (limit + 1)}, {"prompt": ["a", "a" * (limit + 1)]}):
        error = tiny.post(json=body).json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    messages = [{"role": "user", "content": "a" * limit}, {"role": "user", "content": "a"}]
    error = tiny.post("/v1/chat/completions", json={"messages": messages}).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


def test_characters_are_limited_only_where_no_prompt_of_that_length_fits(embedded: Any) -> None:
    engine = embedded[0]
    with serving(engine, None, Vanilla()) as running:
        longest = max(engine.tokenizer.get_vocab().values(), key=lambda i: len(engine.tokenizer.decode([i])))
        text = engine.tokenizer.decode([longest]) * (engine.context - 8)
        assert running.service.max_characters is not None
        assert len(text) <= running.service.max_characters


@pytest.mark.parametrize("limit", [None, 20])
def test_a_prompt_that_does_not_fit_has_the_code_that_clients_look_for(embedded: Any, limit: int | None) -> None:
    with serving(embedded[0], embedded[1], CARDS_IN_THREES, limit_prompt=limit) as running:
        for size in (600, 40_000):
            answer = running.post(json={"prompt": "a b " * size})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_a_prompt_that_the_reward_cannot_read_has_the_same_code() -> None:
    reward = Switch()
    reward.context = 2
    with serving(mock(), reward, CARDS_IN_THREES) as running:
        answer = running.post(json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert_free(running)
