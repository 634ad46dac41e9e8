"""Method settings as command-line options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any

import typer

import cards
from cards.errors import SettingError, UnknownNameError
from cards.methods.base import Method
from cards.registry import method_class, method_classes, read_method
from cards.settings import Setting, metavar, settings_of

PANEL = "Settings of the method"
ENTROPY_RULE = ("entropy_threshold", "measure", "min_segment", "max_segment")


@dataclass(frozen=True, slots=True)
class SharedOption:
    """A command-line option: a setting of one or several methods, by method name."""

    takers: dict[str, Setting] = field(default_factory=dict)

    @property
    def flag(self) -> str:
        return next(iter(self.takers.values())).flag

    @property
    def metavar(self) -> str:
        return metavar(dict.fromkeys(kind for setting in self.takers.values() for kind in setting.kinds))

    @property
    def help(self) -> str:
        """What it sets, and the methods that take it with their defaults; a line for each meaning."""
        meanings: dict[str, dict[str, list[str]]] = {}
        for method, setting in self.takers.items():
            meanings.setdefault(setting.help.rstrip("."), {}).setdefault(setting.default_text, []).append(method)
        lines = []
        for meaning, defaults in meanings.items():
            takers = "; ".join(f"{', '.join(names)}: {default}" for default, names in defaults.items())
            lines.append(f"{meaning} ({takers}).")
        return " ".join(lines)


@cache
def shared_options() -> dict[str, SharedOption]:
    """The settings of all methods by name, in order of first appearance."""
    found: dict[str, SharedOption] = {}
    for method, cls in method_classes().items():
        for name, setting in settings_of(cls).items():
            if setting.typed:
                found.setdefault(name, SharedOption()).takers[method] = setting
    return found


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that ends in `**settings: str | None` an option for each setting of any method."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    for name, shared in shared_options().items():
        option = typer.Option(shared.flag, metavar=shared.metavar, help=shared.help, rich_help_panel=PANEL, show_default=False)
        annotation = Annotated[str | None, option]
        own.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    command.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in own} | {"return": None}
    return command


def method_of(name: str, given: Mapping[str, str | None]) -> Method:
    """The method with the settings given as text. Raises UnknownNameError or SettingError, in terms of options."""
    own, texts = settings_of(method_class(name)), {key: text for key, text in given.items() if text is not None}
    for key in texts:
        if key not in own:
            shared = shared_options()[key]
            hint = f"Methods with {shared.flag}: {', '.join(shared.takers)}."
            raise UnknownNameError(f"option for method {name!r}:", shared.flag, (s.flag for s in own.values()), hint)
    if texts.get("boundary", "entropy") != "entropy" and (unused := [own[key].flag for key in ENTROPY_RULE if key in texts]):
        raise SettingError(f"{', '.join(unused)} set the entropy rule, which --boundary {texts['boundary']} replaces.")
    return read_method(name, texts)


def recorded(method: Method) -> dict[str, Any]:
    """A method with its settings and the version of the package, for the record."""
    values = {name: getattr(method, name) for name in settings_of(method)}
    return {"method": method.name, **values, "version": cards.__version__}
