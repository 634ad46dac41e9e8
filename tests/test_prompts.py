"""Options turn text and messages into prompts, and variables reach the chat template."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from helpers.mock_cli import Cards, cli  # noqa: F401
from helpers.mock_models import mock
from transformers import AutoTokenizer

import cards
from cards.engines.text import encode
from cards.errors import PromptError, SettingError
from cards.events import Message
from cards.prompts import RESERVED, Chat, PromptOptions
from cards.serve.errors import ApiError
from cards.serve.schemas import ChatBody

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)
USER = Message(role="user", content="Hi")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    found = AutoTokenizer.from_pretrained(Path(cards.__file__).parent / "tiny" / "tokenizer")
    found.chat_template = TEMPLATE
    return found


def test_variables_reach_the_chat_template(tokenizer: Any) -> None:
    assert encode(tokenizer, [USER]).text == "<user>Hi"
    for thinking in (True, False):
        messages: Any = [USER]
        expected = tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=thinking)
        assert encode(tokenizer, Chat([USER], {"enable_thinking": thinking})).text == expected
    assert expected == "<user>Hi<think></think>"


def test_a_variable_that_the_template_does_not_use_is_refused(tokenizer: Any) -> None:
    with pytest.raises(PromptError, match="does not use the argument 'thinking'"):
        encode(tokenizer, Chat([USER], {"thinking": False}))


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_parameters_of_the_renderer_are_no_variables(name: str) -> None:
    with pytest.raises(PromptError, match=name):
        Chat([USER], {name: True})
    with pytest.raises(ApiError, match=name):
        ChatBody.model_validate({"messages": [USER], "chat_template_kwargs": {name: True}}).check_fields()


def test_variables_survive_copies_between_processes() -> None:
    chat = pickle.loads(pickle.dumps(Chat([USER], {"enable_thinking": False})))
    assert (list(chat), chat.chat_template_kwargs) == ([USER], {"enable_thinking": False})


def test_a_request_passes_its_variables_on() -> None:
    body = ChatBody.model_validate({"messages": [USER], "chat_template_kwargs": {"enable_thinking": False}})
    body.check_fields()
    [chat] = body.prompts
    assert isinstance(chat, Chat)
    assert (list(chat), chat.chat_template_kwargs) == ([USER], {"enable_thinking": False})


def test_raw_text_has_no_variables() -> None:
    decoder = cards.Decoder(mock(), None, "vanilla")
    with pytest.raises(PromptError, match="prompt of messages"):
        decoder("ab", chat_template_kwargs={"enable_thinking": False})


def test_a_system_message_is_added_where_there_is_none() -> None:
    options = PromptOptions(system="Be brief.")
    system, own = Message(role="system", content="Be brief."), Message(role="system", content="Be kind.")
    assert options.prompt("Hi", chats=True) == [system, USER]
    assert options.prompt([own, USER], chats=True) == [own, USER]
    with pytest.raises(PromptError, match="no chat template"):
        options.prompt("Hi", chats=False)


@pytest.mark.parametrize("text", ["{", "[1]", "3", '{"tokenize": true}'])
def test_malformed_variables_are_refused_before_anything_loads(text: str) -> None:
    with pytest.raises(SettingError, match="--chat-template-kwargs"):
        PromptOptions(chat_template_kwargs=text)


@pytest.mark.parametrize("command", ["generate", "compare", "batch"])
def test_commands_pass_system_and_variables_on(cli: Cards, command: str, tmp_path: Path) -> None:  # noqa: F811
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"prompt": "Hi"}) + "\n")
    arguments = [str(source), str(out)] if command == "batch" else ["Hi"]
    options = ["--system", "Be\\nbrief.", "--chat-template-kwargs", '{"enable_thinking": false}', "--max-tokens", "4"]
    ran = cli(command, *arguments, *options, *(["-m", "vanilla"] if command == "compare" else []))
    assert ran.exit_code == 0, ran.stderr
    given = cli.engine.given
    assert isinstance(given, Chat)
    assert (list(given), given.chat_template_kwargs) == (
        [Message(role="system", content="Be\nbrief."), USER],
        {"enable_thinking": False},
    )
