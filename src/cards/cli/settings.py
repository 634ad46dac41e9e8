"""Method settings as command-line options, read off the dataclass fields of all registered methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from cards.boundaries import Boundary, FixedLength, Punctuation, Step, Whole
from cards.errors import SettingError, UnknownNameError
from cards.methods.base import Method
from cards.registry import METHODS, make_method, method_class

PANEL = "Settings of the method"
HELP = {
    "acceptance": "Quasi-rejection (soft) or the bare threshold (hard)",
    "alpha": "Where the threshold starts: 0 at the reward of the prompt, 1 at the target",
    "beta": "Softness of the acceptance test: lower is stricter",
    "boundary": "What ends a segment instead of uncertainty; entropy keeps the method's own rule",
    "chunk": "Tokens between two pieces of text handed out (none: all at the end)",
    "entropy_threshold": "A segment ends before a token of this uncertainty, tau_u (none: what the model suggests, else 3.0)",
    "max_candidates": "Answers tried before the best of them is taken untested",
    "max_rejections": "Rejections of a segment before the best candidate is taken untested",
    "max_segment": "Most tokens of a segment",
    "measure": "How uncertainty is measured",
    "min_segment": "Fewest tokens of a segment",
    "n": "Answers to choose from",
    "target": "Reward to reach, r* (none: what the reward model suggests)",
    "temperature": "Temperature of the proposals; 0 is greedy (none: beta)",
    "top_k": "Draw from the k likeliest tokens (none: all)",
    "top_p": "Draw from the likeliest tokens of this total probability",
    "width": "Candidates drawn at once: changes the speed, never the text",
}
ENTROPY_RULE = ("entropy_threshold", "measure", "min_segment", "max_segment")
NAMES = {bool: "yes|no", int: "INTEGER", float: "NUMBER", str: "TEXT", NoneType: "none"}
BOUNDARIES = "entropy|fixed:N|punctuation|step|whole"


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of one or several methods: for each its kinds (types, and strings taken literally) and its default."""

    name: str
    kinds: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def flag(self) -> str:
        return flag(self.name)

    @property
    def help(self) -> str:
        """What it does, which methods take it, and their defaults."""
        by_default: dict[str, list[str]] = {}
        for method in self.defaults:
            by_default.setdefault(self.default(method), []).append(method)
        takers = "; ".join(f"{', '.join(methods)}: {default}" for default, methods in by_default.items())
        return f"{HELP.get(self.name, 'A setting of')} ({takers})."

    @property
    def metavar(self) -> str:
        return describe(dict.fromkeys(kind for kinds in self.kinds.values() for kind in kinds))

    def default(self, method: str) -> str:
        """A method's default as one would type it."""
        value = self.defaults[method]
        return str(value) if value is not None else "entropy" if Boundary in self.kinds[method] else "none"

    def parse(self, method: str, text: str) -> Any:
        """The value of a method's setting. Raises SettingError or UnknownNameError."""
        kinds = self.kinds[method]
        if text in kinds:
            return text
        if NoneType in kinds and text == "none":
            return None
        if Boundary in kinds:
            return boundary(text)
        if bool in kinds and text in ("yes", "no"):
            return text == "yes"
        for kind in (int, float, str):
            if kind in kinds:
                try:
                    return kind(text)
                except ValueError:
                    continue
        raise SettingError(f"{self.flag} must be {describe(kinds).replace('|', ' or ')}, not {text!r}.")


@cache
def all_settings() -> dict[str, Setting]:
    """Settings of all registered methods by name, in order of first appearance."""
    found: dict[str, Setting] = {}
    for method in METHODS:
        cls = method_class(method)
        hints = get_type_hints(cls)
        for item in fields(cls):  # type: ignore[arg-type]
            kinds = _kinds(hints[item.name])
            if any(isinstance(kind, str) or kind in NAMES or kind is Boundary for kind in kinds):
                setting = found.setdefault(item.name, Setting(item.name))
                setting.kinds[method] = kinds
                setting.defaults[method] = None if item.default is MISSING else item.default
    return found


def settings_of(method: str) -> list[Setting]:
    """In the method's own order."""
    return [all_settings()[f.name] for f in fields(method_class(method)) if f.name in all_settings()]  # type: ignore[arg-type]


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command that ends in `**settings: str | None` an option for each setting of any method."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    for s in all_settings().values():
        option = typer.Option(s.flag, metavar=s.metavar, help=s.help, rich_help_panel=PANEL, show_default=False)
        annotation = Annotated[str | None, option]
        own.append(inspect.Parameter(s.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    command.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in own} | {"return": None}
    return command


def method_of(name: str, given: Mapping[str, str | None]) -> Method:
    """The method with the settings given as text. Raises UnknownNameError or SettingError, in terms of options."""
    own = settings_of(name)
    values = {}
    for key, text in given.items():
        if text is None:
            continue
        setting = all_settings()[key]
        if setting not in own:
            hint = f"Methods with {setting.flag}: {', '.join(setting.kinds)}."
            raise UnknownNameError(f"option for method {name!r}:", setting.flag, (s.flag for s in own), hint)
        values[key] = setting.parse(name, text)
    if values.get("boundary") and (unused := [flag(key) for key in ENTROPY_RULE if key in values]):
        raise SettingError(f"{', '.join(unused)} set the entropy rule, which --boundary {given['boundary']} replaces.")
    return make_method(name, **values)


def boundary(text: str) -> Boundary | None:
    """`entropy` (None: the method's own rule), `fixed:15`, `punctuation[:MARKS]`, `step[:DELIMITER]` or `whole`."""
    kind, _, detail = text.partition(":")
    detail = unescape(detail)
    if kind not in ("entropy", "fixed", "punctuation", "step", "whole"):
        raise UnknownNameError("boundary", kind, ["entropy", "fixed:15", "punctuation", "step", "whole"])
    if kind == "fixed":
        if not (detail.isdecimal() or not detail):
            raise SettingError(f"--boundary fixed:N takes a number of tokens, as in fixed:15, not {detail!r}.")
        return FixedLength(maximum=int(detail)) if detail else FixedLength()
    if kind == "punctuation":
        return Punctuation(marks=detail) if detail else Punctuation()
    if kind == "step":
        return Step(delimiter=detail) if detail else Step()
    if detail:
        raise SettingError(f"--boundary {kind} takes no value, but was given {detail!r}.")
    return Whole() if kind == "whole" else None


def unescape(text: str) -> str:
    r"""Lets \n and \t stand for the characters that a shell makes hard to type."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def describe(kinds: Iterable[Any]) -> str:
    return "|".join(BOUNDARIES if kind is Boundary else NAMES.get(kind, kind) for kind in kinds if not _hidden(kind, kinds))


def _hidden(kind: Any, kinds: Iterable[Any]) -> bool:
    return kind is NoneType and Boundary in kinds


def _kinds(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) in (Union, UnionType):
        return tuple(kind for part in get_args(hint) for kind in _kinds(part))
    return get_args(hint) if get_origin(hint) is Literal else (hint,)
