"""Settings of methods and commands: each is declared once as a dataclass field, and front ends are derived from it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from cards.boundaries import Boundary, Entropy, boundary_text, read_boundary
from cards.errors import CardsError, SettingError, check
from cards.specs import join_spec, quote

Loads = Literal["engine", "engines", "reward"]
NUMBERS = tuple[float, ...]
WHOLE_NUMBERS = tuple[int, ...]
NAMES = {
    bool: "yes|no",
    int: "INTEGER",
    float: "NUMBER",
    str: "TEXT",
    NUMBERS: "NUMBER,...",
    WHOLE_NUMBERS: "INTEGER,...",
    NoneType: "none",
}
# Help texts that several dataclasses share
MAX_TOKENS = "Maximum number of new tokens."
STOP = "End the response before this text (repeatable; \\n is a newline)."
DEADLINE = "Seconds after which the response so far is returned."
FORM = "Prompt format: auto, chat, dialogue or raw."
CONCURRENCY = "Maximum number of concurrent requests."
BOUNDARIES = ("entropy", "fixed:8", "fixed:15", "fixed:30", "punctuation", "step", "whole")


class Nested:
    """Base class of methods, which are settings of other methods too: as text, they then stand in parentheses."""

    __slots__ = ()
    name: ClassVar[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """The declaration of a setting, without its name, type and default; see `setting`."""

    help: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    typical: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    client: bool = True
    client_at_most: float | None = None
    loads: Loads | None = None
    advanced: bool = False
    unset: str = ""
    escapes: bool = False

    @property
    def range(self) -> str:
        """The allowed range in words; empty if there is no limit."""
        if self.at_least is not None and self.at_most is not None:
            return f"between {self.at_least:g} and {self.at_most:g}"
        if self.above == 0 and self.at_most is None and self.below is None:
            return "positive"
        parts = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        return " and ".join(f"{words} {bound:g}" for words, bound in parts.items() if bound is not None)

    def allows(self, number: float) -> bool:
        """Return whether the number is finite and in the range."""
        return (
            math.isfinite(number)
            and (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )


def setting(default: Any, **spec: Any) -> Any:
    """Declare a setting of a method or a command, as a dataclass field.

    help: a short phrase for `--help`, pages and the playground.
    at_least, above, at_most, below: the allowed range.
    typical: the lowest and highest value of the playground's slider, if the range is not bounded.
    choices: suggested values, if the type does not list them.
    client: whether clients of a server can set it. client_at_most: the highest value that they can set.
    loads: `engine`, `engines` (several) or `reward`, if the setting is a model or its name.
    advanced: whether front ends hide it by default.
    unset: what the default None means, for `--help`.
    escapes: whether \\n stands for a newline on the command line.
    A subclass that repeats the field with a plain default keeps this declaration.
    """
    return field(default=default, metadata={"setting": Spec(**spec)})


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of one method. `kinds` are its types and its literal values."""

    name: str
    kinds: tuple[Any, ...]
    default: Any
    spec: Spec

    @property
    def flag(self) -> str:
        """The command-line option."""
        return "--" + self.name.replace("_", "-")

    @property
    def help(self) -> str:
        return self.spec.help

    @property
    def typed(self) -> bool:
        """Whether its values can be given as text. For a model, this is the name of the model."""
        return bool(self.kinds)

    @property
    def nests(self) -> bool:
        """Whether its values can be methods."""
        return any(_is_nested(kind) for kind in self.kinds)

    @property
    def metavar(self) -> str:
        return metavar(self.kinds)

    @property
    def default_text(self) -> str:
        return self.text(self.default)

    def text(self, value: Any) -> str:
        """Return a value as the text of a command-line option."""
        return "entropy" if value is None and Boundary in self.kinds else option_text(value)

    def parse(self, text: str) -> Any:
        """Parse a value from text. Raises SettingError or UnknownNameError."""
        if text in self.kinds:
            return text
        if NoneType in self.kinds and text == "none":
            return None
        if Boundary in self.kinds:
            return read_boundary(text) or (None if NoneType in self.kinds else Entropy())
        if bool in self.kinds and text in ("yes", "no"):
            return text == "yes"
        for kind, read in READERS.items():
            if kind in self.kinds:
                try:
                    return read(text)
                except CardsError:
                    raise
                except ValueError:
                    continue
        raise SettingError(f"{self.flag} must be {self._described()}, got {text!r}.")

    def check(self, value: Any) -> None:
        """Raise SettingError if the value has the wrong type or is out of range."""
        if self.spec.loads or not self.typed or (value is None and NoneType in self.kinds):
            return
        numbers = value if isinstance(value, tuple) else (value,)
        check(self._fits(value), f"{self.name} must be {self._described()}, got {value!r}.")
        reals = [number for number in numbers if isinstance(number, Real) and not isinstance(number, bool)]
        check(
            all(self.spec.allows(float(number)) for number in reals),
            f"{self.name} must be {self._described(self.spec.range or 'finite')}, got {value!r}.",
        )

    def _fits(self, value: Any) -> bool:
        if isinstance(value, bool):
            return bool in self.kinds
        if isinstance(value, Integral):
            return int in self.kinds or float in self.kinds
        if isinstance(value, Real):
            return float in self.kinds
        if isinstance(value, str):
            return str in self.kinds or value in self.kinds
        if isinstance(value, tuple):
            kind = Integral if WHOLE_NUMBERS in self.kinds else Real
            return bool({NUMBERS, WHOLE_NUMBERS}.intersection(self.kinds)) and all(isinstance(n, kind) for n in value)
        if isinstance(value, Boundary):
            return Boundary in self.kinds
        if isinstance(value, Nested):
            return self.nests
        return callable(value) and bool(self._words)  # a function instead of the name of one

    @property
    def _words(self) -> list[str]:
        return [f"{kind!r}" for kind in self.kinds if isinstance(kind, str)]

    def _described(self, range_: str = "") -> str:
        """Return the allowed values in words."""
        words = {bool: "yes or no", int: "a whole number", float: "a number", str: "text", Boundary: "a boundary"}
        words |= {NUMBERS: "numbers", WHOLE_NUMBERS: "whole numbers"}
        kinds = [range_] if range_ else [words[kind] for kind in self.kinds if kind in words]
        kinds += ["a method in parentheses"] if self.nests else []
        return " or ".join([*self._words, *kinds, *(["none"] if NoneType in self.kinds else [])])

    @property
    def slider(self) -> tuple[float, float, float] | None:
        """The lowest value, highest value and step of a slider; None if the setting is not a bounded number."""
        if not {int, float}.intersection(self.kinds) or NoneType in self.kinds or any(isinstance(k, str) for k in self.kinds):
            return None
        step = 1 if int in self.kinds else 0.05
        low, high = self.spec.typical or (
            self.spec.at_least if self.spec.above is None else self.spec.above + step,
            self.spec.at_most if self.spec.below is None else self.spec.below - step,
        )
        return None if low is None or high is None else (low, high, step)


def settings_of(method: Any) -> dict[str, Setting]:
    """Return the settings of a method or method class by name: its own first, then those of its base classes."""
    return _settings(method if isinstance(method, type) else type(method))


@cache
def _settings(cls: type) -> dict[str, Setting]:
    hints, found = get_type_hints(cls), {}
    for item in sorted(fields(cls), key=lambda item: _depth(cls, item.name)):
        default = None if item.default is MISSING else item.default
        found[item.name] = Setting(item.name, kinds_of(hints[item.name]), default, _spec(cls, item))
    return found


def _depth(cls: type, name: str) -> int:
    """Return the position in the MRO of the class that declares the setting."""
    return min(i for i, base in enumerate(cls.__mro__) if name in inspect.get_annotations(base))


def _spec(cls: type, item: Field[Any]) -> Spec:
    declared = (base.__dict__.get("__dataclass_fields__", {}).get(item.name) for base in cls.__mro__)
    specs = [one.metadata["setting"] for one in declared if one is not None and "setting" in one.metadata]
    if not specs:
        raise TypeError(f"{cls.__name__}.{item.name} must be declared with setting(default, help=...).")
    return specs[0]  # type: ignore[no-any-return]


def check_settings(method: Any) -> None:
    """Raise SettingError if a setting of the method has the wrong type or is out of range."""
    for name, declared in settings_of(method).items():
        declared.check(getattr(method, name))


def metavar(kinds: Iterable[Any]) -> str:
    """Return the kinds of a setting in the notation of `--help`."""
    kinds = tuple(kinds)
    shown = [kind for kind in kinds if not (kind is NoneType and Boundary in kinds)]
    names = NAMES | {Boundary: "entropy|fixed:N|punctuation|step|whole"}
    return "|".join("(METHOD)" if _is_nested(kind) else names.get(kind, kind) for kind in shown)


def spec_of(method: Nested) -> str:
    """Return a method as text, with the settings that differ from their defaults."""
    given = {name: (item, getattr(method, name)) for name, item in settings_of(method).items()}
    texts = {name: (item.text(value), item.nests) for name, (item, value) in given.items() if value != item.default}
    return join_spec(method.name, {name: text if nests else quote(text) for name, (text, nests) in texts.items()})


def option_text(value: Any) -> str:
    """Return the value of a setting as the text of a command-line option."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(option_text, value))
    if isinstance(value, Boundary):
        return boundary_text(value)
    if isinstance(value, Nested):
        return f"({spec_of(value)})"
    return "none" if value is None else str(getattr(value, "name", value))


def parse_numbers(text: str) -> tuple[float, ...]:
    """Parse numbers separated by commas. Raises ValueError."""
    return tuple(float(number) for number in text.split(","))


def parse_whole_numbers(text: str) -> tuple[int, ...]:
    """Parse whole numbers separated by commas. Raises ValueError."""
    return tuple(int(number) for number in text.split(","))


READERS: dict[Any, Callable[[str], Any]] = {  # the registry adds methods, which it finds by name
    int: int,
    float: float,
    WHOLE_NUMBERS: parse_whole_numbers,
    NUMBERS: parse_numbers,
    str: str,
}


def kinds_of(hint: Any) -> tuple[Any, ...]:
    """Return the types and literal values of a type hint that can be given as text."""
    if get_origin(hint) in (Union, UnionType):
        return tuple(dict.fromkeys(kind for part in get_args(hint) for kind in kinds_of(part)))
    if get_origin(hint) is Literal:
        return get_args(hint)
    # a model cannot be given as text, but its name can
    return (hint,) if hint in NAMES or hint is Boundary or _is_nested(hint) else ()


def _is_nested(kind: Any) -> bool:
    return get_origin(kind) is None and isinstance(kind, type) and issubclass(kind, Nested)
