"""The chat loop of `cards generate`: a conversation in which every answer is decoded by the method."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from cards.console import show_error, stderr_console
from cards.errors import CardsError
from cards.events import Message, Result

HELP = "/reset begins anew, /exit or Ctrl-D ends, Ctrl-C interrupts an answer."


def chat(answer: Callable[[list[Message]], Result]) -> None:
    """Read a line, answer it in the light of the conversation so far, repeat."""
    with suppress(ImportError):
        import readline  # noqa: F401  (editing and history of input lines)
    console = stderr_console()
    console.print(HELP, style="dim")
    conversation: list[Message] = []
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            console.print()
            continue
        if line == "/exit":
            return
        if line == "/reset":
            conversation.clear()
            console.print("The conversation begins anew.", style="dim")
        elif line.startswith("/"):
            console.print(HELP, style="dim")
        elif line:
            conversation = _turn(answer, conversation, line)


def _turn(answer: Callable[[list[Message]], Result], conversation: list[Message], line: str) -> list[Message]:
    """The conversation after this turn; without the turn where there was no answer to it."""
    asked = [*conversation, Message(role="user", content=line)]
    try:
        text = answer(asked).text.strip()
    except CardsError as error:
        show_error(str(error))
        return conversation
    return [*asked, Message(role="assistant", content=text)] if text else conversation
