"""Errors and warnings. Each message names the invalid input and the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cards.events import Result

ADDRESS = re.compile(r"(https?://)(?:[^/?#\s]*@)?([^?#\s]*)(?:\?[^#\s]*)?", re.IGNORECASE)
MAX_NAME = 80  # characters of a name in a message
MAX_KNOWN = 20  # names in a message that has a guess already


class CardsError(Exception):
    """Base class of all errors that this package raises.

    `partial` is the response so far, if there is one. `quoted` are the texts of prompts and responses in the message.
    """

    partial: Result | None = None
    quoted: tuple[str, ...] = ()


class SettingError(CardsError, ValueError):
    """A setting is out of range or unknown."""


class MissingExtraError(SettingError):
    """An optional dependency is missing. `needed` names the feature and the package; `extra` is the extra to install."""

    def __init__(self, needed: str, extra: str, hint: str = "") -> None:
        super().__init__(f"{needed}: pip install 'cards-decoding[{extra}]'.{' ' + hint if hint else ''}")


def require(needed: str, extra: str, *modules: str) -> None:
    """Raise MissingExtraError if one of the modules is not installed. `needed` is the feature that needs them."""
    for module in modules:
        if find_spec(module) is None:
            raise MissingExtraError(f"{needed} needs {module}", extra)


class UnreachableTargetWarning(UserWarning):
    """Many segments are fallbacks, so the model probably cannot reach the target reward."""


class UnknownNameError(CardsError, ValueError):
    """The name of a model, method, reward or option is unknown."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        if len(name) > MAX_NAME:
            name = name[:MAX_NAME].partition("://")[0] + "..."
        name = public_name(name)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        listed = f" Known: {', '.join(known)}." if not near or len(known) <= MAX_KNOWN else ""
        super().__init__(f"Unknown {kind} {name!r}.{guess}{listed}{' ' + hint if hint else ''}")


class PromptError(CardsError, ValueError):
    """A prompt is empty, malformed or too long for the model."""


class PromptTooLongError(PromptError):
    """A prompt does not leave room for a response in the context of a model."""


class ModelError(CardsError, ValueError):
    """A model cannot be loaded or cannot run exactly; the message gives the reason."""


class RewardError(CardsError, RuntimeError):
    """A reward could not be computed or is not finite. No candidate is accepted on such a score."""


class UnavailableError(CardsError, RuntimeError):
    """A model server cannot be reached, or still fails after retries."""


class MismatchError(CardsError, ValueError):
    """The engine or the reward lacks a capability that the method needs."""


class BatchError(CardsError):
    """Some prompts of a batch failed. `results` has None for each of them; `errors` maps their numbers to the causes."""

    def __init__(self, results: Sequence[Result | None], errors: dict[int, Exception]) -> None:
        self.results, self.errors = list(results), errors
        first = min(errors)
        super().__init__(
            f"{len(errors)} of {len(results)} prompts failed; the first, number {first}: {errors[first]} "
            "The results of the other prompts are in this error's `results`."
        )


def public_name(name: str) -> str:
    """Return the name of a model with any http address in it stripped of user name, password and query."""
    return ADDRESS.sub(r"\1\2", name)


def check(condition: bool, message: str) -> None:
    """Raise SettingError with this message unless the condition holds."""
    if not condition:
        raise SettingError(message)
