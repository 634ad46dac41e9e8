"""The chat loop of `cards generate`, and the loop that continues raw text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

from cards.console import say, show_error
from cards.errors import CardsError
from cards.events import Message, Result

P = TypeVar("P")
CHAT = "/reset starts a new conversation, /exit or Ctrl-D quits, Ctrl-C interrupts a response."
RAW = "The model continues what you type. /reset starts a new text, /exit or Ctrl-D quits, Ctrl-C interrupts a response."


def chat(respond: Callable[[list[Message]], Result]) -> None:
    """Read lines and respond to each with the whole conversation as the prompt. A turn without a response is left out."""
    conversation: list[Message] = []
    for line in _lines(CHAT, "Started a new conversation."):
        if line is None:
            conversation = []
            continue
        prompt = [*conversation, Message(role="user", content=line.strip())]
        if text := _text(respond, prompt).strip():
            conversation = [*prompt, Message(role="assistant", content=text)]


def continue_text(respond: Callable[[str], Result], model: str) -> None:
    """Read lines and continue the text so far, which consists of these lines and the responses.

    `model` is the name of a model without a chat template, or empty if the user chose raw text.
    """
    if model:
        say(f"{model} has no chat template, so it continues text. For a chat, give a template with --chat-template.", "dim")
    so_far = ""
    for line in _lines(RAW, "Started a new text."):
        if line is None:
            so_far = ""
            continue
        prompt = f"{so_far}\n{line}" if so_far else line
        if text := _text(respond, prompt):
            so_far = prompt + text


def _lines(help_line: str, reset: str) -> Iterator[str | None]:
    """Yield the lines that the user types, and None for /reset."""
    with suppress(ImportError):
        import readline  # noqa: F401  (enables editing and history of input lines)
    say(help_line, "dim")
    while True:
        try:
            line = input("> ")
        except EOFError:
            say("", "dim")
            return
        except KeyboardInterrupt:
            say("", "dim")
            continue
        command = line.strip()
        if command == "/exit":
            return
        if command == "/reset":
            say(reset, "dim")
            yield None
        elif command.startswith("/"):
            say(help_line, "dim")
        elif command:
            yield line


def _text(respond: Callable[[P], Result], prompt: P) -> str:
    """Return the text of the response, or an empty text after an error, which is shown."""
    try:
        return respond(prompt).text
    except CardsError as error:
        show_error(str(error))
        return ""
