"""The chat loop of `cards generate`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from cards.console import show_error, stderr_console
from cards.errors import CardsError
from cards.events import Message, Result

HELP = "/reset starts a new conversation, /exit or Ctrl-D quits, Ctrl-C interrupts a response."


def chat(respond: Callable[[list[Message]], Result]) -> None:
    """Read lines and respond to each with the whole conversation as the prompt."""
    with suppress(ImportError):
        import readline  # noqa: F401  (enables editing and history of input lines)
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
            console.print("Started a new conversation.", style="dim")
        elif line.startswith("/"):
            console.print(HELP, style="dim")
        elif line:
            conversation = _turn(respond, conversation, line)


def _turn(respond: Callable[[list[Message]], Result], conversation: list[Message], line: str) -> list[Message]:
    """Return the conversation after this turn. A turn without a response is left out."""
    prompt = [*conversation, Message(role="user", content=line)]
    try:
        text = respond(prompt).text.strip()
    except CardsError as error:
        show_error(str(error))
        return conversation
    return [*prompt, Message(role="assistant", content=text)] if text else conversation
