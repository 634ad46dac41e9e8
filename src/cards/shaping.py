"""Shaping: changes to the logits of an LM that a request asks for, before the sampling settings apply."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cards.errors import SettingError, check
from cards.settings import setting

if TYPE_CHECKING:
    from cards.grammar import Grammar


@dataclass(frozen=True, slots=True)
class Shaping:
    """Changes to the next-token logits z of the LM, in this order:

        z(v) <- z(v) + logit_bias(v)
        z(v) <- z(v) / repetition_penalty if z(v) > 0, else z(v) * repetition_penalty     v in the prompt or the response
        z(v) <- z(v) - frequency_penalty * c(v) - presence_penalty                        v in the response, c(v) times
        z(v) <- -inf                                                                      v that the grammar does not allow

    Temperature, top_k, top_p and boundaries by entropy apply to the result. The response is all of it so far, with its
    thinking, not only the current segment. `repetition_penalty` None is that of the model's generation config. `logit_bias` has
    pairs of token id and bias; -inf excludes the token. Raises SettingError.
    """

    grammar: Grammar | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        ids = [token for token, _ in self.logit_bias]
        check(len(set(ids)) == len(ids), "logit_bias must have each token id once.")
        for token, bias in self.logit_bias:
            check(isinstance(token, int) and token >= 0, f"logit_bias must have token ids of at least 0, got {token!r}.")
            check(bias < math.inf, f"logit_bias must be finite or -inf for each token, got {bias} for token {token}.")
        for name in ("presence_penalty", "frequency_penalty"):
            check(math.isfinite(getattr(self, name)), f"{name} must be a finite number, got {getattr(self, name)}.")
        penalty = self.repetition_penalty
        check(penalty is None or 0 < penalty < math.inf, f"repetition_penalty must be positive, got {penalty}.")

    def __bool__(self) -> bool:
        return self != NO_SHAPING


NO_SHAPING = Shaping()


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapingOptions:
    """Options of a command that shape the logits. Raises SettingError."""

    json_schema: str | None = setting(None, help="JSON schema of the response: a file, or the schema itself.")
    json_object: bool = setting(False, help="Make the response a JSON object.")
    regex: str | None = setting(None, help="Regular expression that the whole response matches.")
    choice: tuple[str, ...] = setting((), help="A text that the response may be (repeatable).", escapes=True)
    grammar: str | None = setting(None, help="File with a grammar of the response, in Lark or GBNF.")
    logit_bias: tuple[str, ...] = setting((), help="Number added to the logit of a token, as ID=NUMBER (repeatable).")
    presence_penalty: float = setting(0.0, help="Number subtracted from the logits of tokens in the response.")
    frequency_penalty: float = setting(0.0, help="The same for each occurrence of a token in the response.")
    repetition_penalty: float | None = setting(
        None,
        help="Divisor of the logits of tokens in the prompt or the response; 1 is off.",
        above=0,
        unset="that of the model's generation config",
    )

    @property
    def shaping(self) -> Shaping:
        """Return the shaping that the options describe."""
        return Shaping(
            self._grammar(),
            tuple(_bias(text) for text in self.logit_bias),
            self.presence_penalty,
            self.frequency_penalty,
            self.repetition_penalty,
        )

    def _grammar(self) -> Grammar | None:
        from cards.grammar import Grammar

        names = ("json_schema", "json_object", "regex", "choice", "grammar")
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(self, name)]
        check(len(given) <= 1, f"{' and '.join(given)} both constrain the response: give one of them.")
        if self.json_schema is not None:
            text = self.json_schema
            return Grammar.json_schema(text if text.lstrip().startswith("{") else _content(text, "--json-schema"))
        if self.json_object:
            return Grammar.json_object()
        if self.regex is not None:
            return Grammar.regex(self.regex)
        if self.choice:
            return Grammar.choice(self.choice)
        return None if self.grammar is None else Grammar.lark(_content(self.grammar, "--grammar"))


def _content(path: str, option: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{option} needs a readable text file, got {path!r}.") from error


def _bias(text: str) -> tuple[int, float]:
    token, _, number = text.partition("=")
    try:
        return int(token), float(number)
    except ValueError as error:
        raise SettingError(f"--logit-bias must have the form ID=NUMBER, such as 42=-5, got {text!r}.") from error
