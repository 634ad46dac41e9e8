"""Terminal output: messages on standard error, one-line errors and warnings, and a spinner."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from logging.handlers import BufferingHandler

from rich.console import Console
from rich.status import Status
from rich.text import Text

ENDINGS = {"stop": "end of text", "length": "token limit reached", "deadline": "deadline reached", "interrupted": "interrupted"}


def stderr_console() -> Console:
    """Return a console on the current standard error, for everything except responses."""
    return Console(stderr=True, highlight=False, markup=False)


def say(message: str, style: str) -> None:
    """Print a coloured line on standard error. Only terminals wrap it."""
    console = stderr_console()
    console.print(Text(message, style=style), soft_wrap=not console.is_terminal)


def show_error(message: str) -> None:
    say(f"error: {message}", "red")


def show_warning(message: str) -> None:
    say(f"warning: {message}", "yellow")


@contextmanager
def one_line_warnings(*, notes: bool = False) -> Iterator[None]:
    """Collect warnings and print each distinct one as a yellow line when the block ends. `notes` prints what is logged too."""
    log, logged = logging.getLogger("cards"), BufferingHandler(capacity=sys.maxsize)
    logged.setLevel(logging.INFO if notes else logging.WARNING)
    level = log.level
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        log.addHandler(logged)
        log.setLevel(logging.INFO if notes else level)
        try:
            yield
        finally:
            log.removeHandler(logged)
            log.setLevel(level)
            for note in dict.fromkeys(record.getMessage() for record in logged.buffer if record.levelno < logging.WARNING):
                say(note, "dim")
            messages = [record.getMessage() for record in logged.buffer if record.levelno >= logging.WARNING]
            for message in dict.fromkeys([*messages, *(str(warning.message) for warning in caught)]):
                show_warning(message)


def spinner(console: Console, text: str) -> AbstractContextManager[Status | None]:
    """Show that work is in progress, on terminals only."""
    return console.status(text) if console.is_terminal else nullcontext()


def quoted(text: str) -> str:
    """Return the text on one line, with its whitespace visible."""
    return json.dumps(text, ensure_ascii=False)
