"""Decode one response under a view. Ctrl-C keeps the segments accepted so far."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from typing import Any, Protocol, TypedDict

from cards.decoder import Decoder, PromptLike
from cards.errors import CardsError
from cards.events import Event, Result


class GenerateOptions(TypedDict):
    """Keyword arguments of `Decoder.stream`."""

    max_tokens: int
    seed: int
    stop: Sequence[str]
    deadline: float | None
    trace: bool


class ResponseView(AbstractContextManager[Any], Protocol):
    """A display of the events of a response and of its result. `ending` overrides the finish reason of the result."""

    def show(self, event: Event) -> None: ...

    def close(self, result: Result, ending: str | None = None) -> None: ...


def respond(decoder: Decoder, prompt: PromptLike, view: ResponseView, options: GenerateOptions) -> Result:
    """Decode a response, show it, and return its result. After Ctrl-C the result is partial."""
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
