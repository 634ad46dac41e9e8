"""The chat loop keeps the conversation until it is reset or ended."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from helpers.mock_cli import Cards

from cards.cli.chat import chat
from cards.errors import PromptError
from cards.events import Message, Result
from cards.usage import Usage

Line = str | type[BaseException]
Talk = Callable[..., list[list[str]]]


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Talk:
    """Return a function that types lines and returns the conversations that were decoded."""

    def typed(*lines: Line, answers: Callable[[str], str] = str.upper) -> list[list[str]]:
        left = iter([*lines, EOFError])
        seen: list[list[str]] = []

        def read(prompt: str) -> str:
            line = next(left)
            if isinstance(line, str):
                return line
            raise line

        def answer(messages: list[Message]) -> Result:
            assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2) + ["user"]
            seen.append([m["content"] for m in messages])
            text = answers(messages[-1]["content"])
            return Result(text, (), (), None, "stop", Usage(), 0, "cards")

        monkeypatch.setattr("builtins.input", read)
        chat(answer)
        assert next(left, None) is None or "/exit" in lines
        return seen

    return typed


def test_a_conversation_goes_on_until_it_is_reset(talk: Talk) -> None:
    assert talk("hi", " you? ", "/reset", "hello") == [["hi"], ["hi", "HI", "you?"], ["hello"]]


def test_exit_ends_it(talk: Talk) -> None:
    assert talk("hi", "/exit", "never") == [["hi"]]


def test_empty_lines_unknown_commands_and_ctrl_c_at_the_prompt_change_nothing(
    talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk("hi", "", "/help", KeyboardInterrupt, "you?") == [["hi"], ["hi", "HI", "you?"]]
    assert capsys.readouterr().err.count("/reset starts a new conversation") == 2


def test_what_could_not_be_answered_is_not_part_of_it(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(text: str) -> str:
        if text == "long":
            raise PromptError("The prompt has 600 tokens.")
        return "" if text == "silence" else "yes"

    assert talk("long", "silence", "hi", "you?", answers=refuse)[2:] == [["hi"], ["hi", "yes", "you?"]]
    assert capsys.readouterr().err.count("error: The prompt has 600 tokens.") == 1


@pytest.mark.parametrize("options", [("--raw",), ()])
def test_without_a_template_the_text_is_continued(
    cli: Cards, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.setattr("cards.cli.stdin.at_terminal", lambda: True)
    cli.engine.chats = bool(options)
    ran = cli("generate", *options, "--max-tokens", "4", "-m", "vanilla", input="I like\na lot\n/reset\nit\n/exit\n")
    assert ran.exit_code == 0, ran.stderr
    first, second, third = [prompt.text for prompt in cli.engine.prompts]
    assert (first, third) == ("I like", "it")
    assert second.startswith("I like")
    assert second.endswith("\na lot")
    assert len(second) > len("I like\na lot")  # the response is part of the text
    assert ("no chat template" in ran.stderr) == (not options)


def test_a_chat_has_no_json(cli: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cards.cli.stdin.at_terminal", lambda: True)
    ran = cli("generate", "--json")
    assert ran.exit_code == 2
    assert "A chat does not support" in ran.stderr


def test_a_terminal_without_text_is_a_chat(cli: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cards.cli.stdin.at_terminal", lambda: True)
    ran = cli("generate", "--max-tokens", "4", input="I like\na lot\n/exit\n")
    assert ran.exit_code == 0
    assert [len(prompt.messages or ()) for prompt in cli.engine.prompts] in ([1, 3], [1, 1])
    assert ran.stderr.count("tokens kept") == 2
