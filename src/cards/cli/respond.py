"""Decode one response under a view. Ctrl-C keeps the segments accepted so far."""

from __future__ import annotations

import warnings
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Protocol

from cards.decoder import Decoder, PromptLike
from cards.errors import CardsError
from cards.events import Event, Result
from cards.rewards.constraints import broken
from cards.settings import DEADLINE, MAX_TOKENS, STOP, setting
from cards.shaping import NO_SHAPING, Shaping


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseOptions:
    """Options of one response, as keyword arguments of `Decoder.stream`."""

    seed: int = setting(0, help="Random seed; the same seed gives the same response.", at_least=0)
    max_tokens: int = setting(128, help=MAX_TOKENS, at_least=1)
    stop: tuple[str, ...] = setting((), help=STOP, escapes=True)
    deadline: float | None = setting(None, help=DEADLINE)


class ResponseView(Protocol):
    """A display of the events of a response and of its result. `ending` overrides the finish reason of the result."""

    def show(self, event: Event) -> None: ...

    def close(self, result: Result, ending: str | None = None) -> None: ...


def respond(
    decoder: Decoder,
    prompt: PromptLike,
    view: ResponseView,
    options: ResponseOptions,
    trace: bool = False,
    shaping: Shaping = NO_SHAPING,
) -> Result:
    """Decode a response, show it, and return its result. After Ctrl-C the result is partial."""
    events = decoder.stream(prompt, **asdict(options), trace=trace, shaping=shaping)
    try:
        with closing(events):
            for event in events:
                view.show(event)
    except CardsError as error:
        if error.partial is not None and error.partial.segments:
            view.close(error.partial, "failed")
        raise
    except KeyboardInterrupt:
        pass  # `closing` has ended the request
    view.close(events.result)
    _warn_if_broken(decoder, events.result, shaping)
    return events.result


def _warn_if_broken(decoder: Decoder, result: Result, shaping: Shaping) -> None:
    """Warn if the response does not meet constraints of the reward, or ends within its grammar."""
    missed = broken(decoder.reward, result.text) if result.finish_reason in ("stop", "length") else []
    if shaping.grammar is not None and result.finish_reason != "stop":
        missed.append("the grammar")
    if missed:
        advice = " It is incomplete: raise --max-tokens." if result.finish_reason == "length" else ""
        warnings.warn(f"The response of {result.method} does not meet {' and '.join(missed)}.{advice}", stacklevel=2)
