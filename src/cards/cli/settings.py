"""Command-line options for the settings of methods."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

import typer

import cards
from cards.cli.options import Command, PlainCommand, extended, keyword
from cards.errors import SettingError, UnknownNameError, check
from cards.methods.base import Method
from cards.registry import method_class, method_classes, read_method, split_settings
from cards.settings import Setting, metavar, option_text, settings_of

PANEL = "Method settings"
ENTROPY_RULE = ("entropy_threshold", "measure", "min_segment", "max_segment")


@cache
def shared_options() -> dict[str, dict[str, Setting]]:
    """Return the settings of all methods by name and method. Settings of one name share a command-line option."""
    options: dict[str, dict[str, Setting]] = {}
    for method, cls in method_classes().items():
        for name, setting in settings_of(cls).items():
            if setting.typed:
                options.setdefault(name, {})[method] = setting
    return options


class SettingsCommand(PlainCommand):
    """A command whose help shows the settings of the chosen method, or of the default one, and no others."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["arguments"] = list(args)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        params: Sequence[Any] = self.params
        chosen = next(param for param in params if param.name == "method")
        name: str = given_value(ctx.meta["arguments"], chosen.opts) or chosen.default
        own = settings_of(method_class(split_settings(name)[0] if ":" in name else name))
        for param in params:
            if param.name in shared_options():
                if param.name in own:
                    setting = own[param.name]
                    param.help = f"{setting.help.rstrip('.')} (default: {setting.default_text})."
                    param.metavar = setting.metavar
                    param.rich_help_panel = f"Settings of {name} (cards methods {name} explains them)"
                else:
                    param.hidden = True
        super().format_help(ctx, formatter)


def given_value(arguments: Sequence[str], flags: Collection[str]) -> str | None:
    """Return the last value of an option in unparsed arguments."""
    found = None
    for argument, after in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, equals, value = argument.partition("=")
        if flag in flags:
            found = value if equals else after
    return found


def with_settings(command: Command) -> Command:
    """Add an option for each setting of any method to a command. Its parameter `settings` receives those given, as text."""
    added = []
    for name, settings in shared_options().items():
        flag = next(iter(settings.values())).flag
        kinds = metavar(dict.fromkeys(kind for setting in settings.values() for kind in setting.kinds))
        option = typer.Option(flag, metavar=kinds, rich_help_panel=PANEL, show_default=False)
        added.append(keyword(name, str, option))
    extended_command = extended(command, "settings", added, dict)
    extended_command.command_class = SettingsCommand  # type: ignore[attr-defined]
    return extended_command


def method_of(name: str, texts: Mapping[str, str]) -> Method:
    """Return the method with settings given as text. Raises UnknownNameError or SettingError, naming options.

    `name` can have settings, too, as in `best-of-n:n=4,inner=(cards:target=2)`.
    """
    if ":" in name:
        name, within = split_settings(name)
        check(not (twice := within.keys() & texts.keys()), f"{', '.join(sorted(twice))} is given twice: leave out one of them.")
        texts = within | dict(texts)
    known = settings_of(method_class(name))
    for key in texts:
        if key not in known:
            if (others := shared_options().get(key)) is None:  # from a file; the command line has only known options
                raise UnknownNameError(f"setting of method {name!r}:", key, known)
            flag = next(iter(others.values())).flag
            hint = f"Methods with {flag}: {', '.join(others)}."
            raise UnknownNameError(f"option for method {name!r}:", flag, (s.flag for s in known.values()), hint)
    if texts.get("boundary", "entropy") != "entropy" and (unused := [known[key].flag for key in ENTROPY_RULE if key in texts]):
        raise SettingError(
            f"{', '.join(unused)} set the entropy rule, which --boundary {texts['boundary']} replaces: leave out one of them."
        )
    return read_method(name, texts)


def recorded(method: Method) -> dict[str, Any]:
    """Return a method's name, its settings and the package version, for file headers."""
    given = {name: getattr(method, name) for name in settings_of(method)}
    values = {name: option_text(value) if isinstance(value, Method) else value for name, value in given.items()}
    return {"method": method.name, **values, "version": cards.__version__}
