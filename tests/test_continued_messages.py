"""A response can continue a message of the assistant: models and rewards read one message."""

from __future__ import annotations

from typing import Any

import pytest

from cards import Decoder, Response
from cards.backends.forms import ResponseEncoder
from cards.backends.local.engine import TransformersEngine
from cards.engines.mock import MockEngine
from cards.errors import PromptError
from cards.events import Message
from cards.methods import Vanilla
from cards.prompts import Chat, ChatOptions, rendered_as
from cards.rewards.engines import encode_prompt
from cards.rewards.self_evaluation import conversation

TURNS = [Message(role="user", content="How was it?"), Message(role="assistant", content="It was a")]
OTHER = "{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}"


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return TransformersEngine.load("tiny")


def continued(engine: Any) -> Any:
    return engine.encode(Chat(TURNS, {}, continued=True))


def test_a_continued_message_is_rendered_without_its_end(engine: TransformersEngine) -> None:
    prompt, bare = continued(engine), engine.encode(TURNS[:1])
    assert prompt.text.endswith("It was a")
    assert prompt.text.startswith(bare.text.rstrip())
    assert (prompt.messages, prompt.begun) == (tuple(TURNS[:1]), "It was a")
    result = Decoder(engine, None, Vanilla())(prompt, max_tokens=8, seed=1)
    same = Decoder(engine, None, Vanilla())(Chat(TURNS, {}, continued=True), max_tokens=8, seed=1)
    assert result.text == same.text


@pytest.mark.parametrize("form", [None, "plain", "other"])
def test_rewards_read_the_whole_message(engine: TransformersEngine, form: str | None) -> None:
    """The ids of the message in two parts are those of the whole message."""
    tokenizer: Any = engine.tokenizer
    if form == "other":
        import copy

        tokenizer = copy.copy(tokenizer)
        tokenizer.chat_template = OTHER
    encoder = ResponseEncoder(tokenizer, None if form == "other" else form, "reward")
    whole, rest = " It was a good film", " good film"
    bare = engine.encode(TURNS[:1])
    for finish in (None, "stop"):
        one = encoder.encode(bare, Response(whole, (1,), finish), shared=False)
        other = encoder.encode(continued(engine), Response(rest, (1,), finish), shared=False)
        assert tokenizer.decode(other).split() == tokenizer.decode(one).split()


def test_other_models_get_the_message_to_continue(engine: TransformersEngine) -> None:
    prompt = continued(engine)
    assert encode_prompt(engine, prompt).token_ids == prompt.token_ids
    assert conversation(prompt, Response(" film", (1,))) == "User: How was it?\n\nAssistant: It was a film"
    assert rendered_as(engine.encode(TURNS[:1]), TURNS[:1]) == TURNS[:1]


def test_defaults_for_chats_keep_the_message_open() -> None:
    mock = MockEngine(lambda ids: [0.5, 0.5], "ab")
    chat: Any = ChatOptions(system="Be brief.").chat(Chat(TURNS, {}, continued=True))
    prompt = mock.encode(chat)
    assert prompt.begun == "It was a"
    assert prompt.text == "system: Be brief.\nuser: How was it?\nassistant: It was a"


@pytest.mark.parametrize("turns", [[], TURNS[:1], [*TURNS[:1], Message(role="assistant", content="")]])
def test_only_text_of_the_assistant_can_be_continued(turns: list[Message]) -> None:
    with pytest.raises(PromptError, match="assistant"):
        Chat(turns, {}, continued=True)
