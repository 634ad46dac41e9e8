"""What can go wrong, in the user's words: every message names the input at fault and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cards.events import Result


class CardsError(Exception):
    """Base of every error raised on purpose by this package. `partial` is the answer so far, where there is one."""

    partial: Result | None = None


class SettingError(CardsError, ValueError):
    """A setting is out of range or does not exist."""


class MissingExtraError(SettingError):
    """An optional dependency is not installed. `needed` says what needs which package, `extra` is the extra that has it."""

    def __init__(self, needed: str, extra: str, hint: str = "") -> None:
        super().__init__(f"{needed}: pip install 'cards-decoding[{extra}]'.{' ' + hint if hint else ''}")


class UnreachableTargetWarning(UserWarning):
    """So many segments are fallbacks that the target reward looks out of reach for the model."""


class UnknownNameError(CardsError, ValueError):
    """A model, method, reward or option name is not known."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        super().__init__(f"Unknown {kind} {name!r}.{guess} Known: {', '.join(known)}.{' ' + hint if hint else ''}")


class PromptError(CardsError, ValueError):
    """A prompt is empty, malformed or too long for the model."""


class ModelError(CardsError, ValueError):
    """A model cannot be loaded, or cannot be used exactly, for the stated reason."""


class RewardError(CardsError, RuntimeError):
    """A reward could not be computed, or is not a finite number; nothing is accepted on such a score."""


class UnavailableError(CardsError, RuntimeError):
    """A server that a model runs on cannot be reached, or fails, after the retries that make sense."""


class MismatchError(CardsError, ValueError):
    """The method needs something that the engine or the reward does not have."""


class BatchError(CardsError):
    """Some prompts of a batch failed. `results` has the answers of the others (None where one failed), `errors` the causes."""

    def __init__(self, results: Sequence[Result | None], errors: dict[int, Exception]) -> None:
        self.results, self.errors = list(results), errors
        first = min(errors)
        super().__init__(
            f"{len(errors)} of {len(results)} prompts failed; the first, number {first}: {errors[first]} "
            "The other answers are in this error's `results`."
        )


def check(condition: bool, message: str) -> None:
    """Raise SettingError(message) unless condition holds."""
    if not condition:
        raise SettingError(message)
