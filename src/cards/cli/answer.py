"""One answer from a decoder, which Ctrl-C cuts short without losing what was accepted."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from typing import Any, Protocol, TypedDict

from cards.decoder import Decoder, PromptLike
from cards.errors import CardsError
from cards.events import Event, Result


class Options(TypedDict):
    """What `Decoder.stream` takes."""

    max_tokens: int
    seed: int
    stop: Sequence[str]
    deadline: float | None
    trace: bool


class Watcher(AbstractContextManager[Any], Protocol):
    """Who shows the events of an answer, and at the end its result; `ending` says how it ended where the result does not."""

    def show(self, event: Event) -> None: ...

    def close(self, result: Result, ending: str | None = None) -> None: ...


def answer(decoder: Decoder, prompt: PromptLike, view: Watcher, options: Options) -> Result:
    """Decode under a view; Ctrl-C interrupts it, and the result is what was accepted by then and what it cost."""
    events = decoder.stream(prompt, **options)
    try:
        with view, closing(events):
            for event in events:
                view.show(event)
    except CardsError as error:
        if error.partial is not None and error.partial.segments:
            view.close(error.partial, "failed")
        raise
    except KeyboardInterrupt:
        pass  # `closing` has ended the request
    view.close(events.result)
    return events.result
