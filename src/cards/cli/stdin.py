"""The prompt of a command: its argument, standard input, or both."""

from __future__ import annotations

import os
import stat
import sys
from threading import Timer

from cards.console import say
from cards.errors import PromptError

PATIENCE = 2.0  # seconds before a command says that it waits for standard input


def at_terminal() -> bool:
    return sys.stdin.isatty()


def prompt_text(text: str | None, *, chats: bool = False) -> str | None:
    """Return the argument followed by an empty line and what is piped in, or the one that there is.

    `-` stands for standard input. At a terminal nothing is read unless the argument is `-`. Without any text the result is None
    if `chats`. Raises PromptError.
    """
    if text is None and at_terminal() and chats:
        return None
    given = [] if text in (None, "-") else [text or ""]
    if text == "-" or (not given and not at_terminal()) or (given and is_piped()):
        given.append(read())
    found = "\n\n".join(part for part in given if part.strip())
    if not found:
        raise PromptError("The prompt is empty: give a text.")
    return found


def is_piped() -> bool:
    """Return whether standard input is a pipe or a file, as opposed to a terminal, a socket or /dev/null."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # no file behind it
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def read() -> str:
    """Return all of standard input. Says after a while that it waits."""
    waiting = Timer(PATIENCE, say, ["waiting for the end of standard input (use </dev/null if there is none)", "dim"])
    waiting.daemon = True
    waiting.start()
    try:
        return sys.stdin.read()
    finally:
        waiting.cancel()
