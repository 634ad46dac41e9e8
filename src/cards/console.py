"""Output for people: messages on standard error, one-line errors and warnings, a spinner, and words for results."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from rich.console import Console
from rich.status import Status
from rich.text import Text

ENDINGS = {"stop": "end of text", "length": "token limit reached", "deadline": "deadline reached", "interrupted": "interrupted"}


def messages() -> Console:
    """The console of everything but the answer: standard error, as it is now."""
    return Console(stderr=True, highlight=False, markup=False)


def say(message: str, style: str) -> None:
    """A line in a colour, wrapped between words on a terminal and left whole in a file."""
    console = messages()
    console.print(Text(message, style=style), soft_wrap=not console.is_terminal)


def show_error(message: str) -> None:
    say(f"error: {message}", "red")


def show_warning(message: str) -> None:
    say(f"warning: {message}", "yellow")


class _Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Shows what is warned of inside, at the end, each as one yellow line."""
    log, logged = logging.getLogger("cards"), _Kept()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        log.addHandler(logged)
        try:
            yield
        finally:
            log.removeHandler(logged)
            for message in dict.fromkeys([*logged.told, *(str(warning.message) for warning in caught)]):
                show_warning(message)


def spinner(console: Console, text: str) -> AbstractContextManager[Status | None]:
    """A line that shows something is going on, where somebody looks."""
    return console.status(text) if console.is_terminal else nullcontext()


def quoted(text: str) -> str:
    """Return the text on one line, with its white space visible."""
    return json.dumps(text, ensure_ascii=False)
