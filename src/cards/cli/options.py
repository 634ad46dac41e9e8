"""Options and help texts that several commands share, and options derived from dataclasses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from functools import wraps
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand
from typer.models import OptionInfo

from cards import placement
from cards.boundaries import unescape
from cards.placement import Placement
from cards.settings import NAMES, Setting, settings_of

OUTPUT, MODELS = "Output", "Models"
METHOD = "Decoding method; `cards methods` lists them."
PROMPT_SOURCE = "Prompts: tiny, a data set (`cards bench --help` lists them), or a file: .jsonl, .json, .csv, .txt, .parquet."
METHOD_FLAGS = ("--method", "-m")
MODEL = typer.Option(help=placement.MODEL, rich_help_panel=MODELS)
REWARD = typer.Option(help=placement.REWARD, show_default=placement.REWARD_UNSET, rich_help_panel=MODELS)
GOLD = typer.Option(help=placement.GOLD, rich_help_panel=MODELS)
JSON = typer.Option("--json", help="Print the result as JSON.", rich_help_panel=OUTPUT)
SHAPING = "Structured output and penalties"
Command = Callable[..., None]


def with_options(
    cls: type, parameter: str, panel: str | None = None, leave_out: Collection[str] = ()
) -> Callable[[Command], Command]:
    """Add an option for each setting of a dataclass to a command, except `leave_out`.

    Its parameter of this name receives an instance or, if it is annotated as dict, the values of the options that were given.
    """
    hints = get_type_hints(cls)

    def decorate(command: Command) -> Command:
        whole = inspect.signature(command, eval_str=True).parameters[parameter].annotation is cls
        names = hints.keys() - set(leave_out)
        declared = {name: item for name, item in settings_of(cls).items() if name in names}

        def build(given: dict[str, Any]) -> Any:
            for name, value in given.items():
                if isinstance(value, str) and declared[name].spec.escapes:
                    given[name] = unescape(value)
                elif isinstance(value, list):
                    given[name] = tuple(map(unescape, value) if declared[name].spec.escapes else value)
            return cls(**given) if whole else given

        added = [_option(item, hints[name], panel, whole) for name, item in declared.items()]
        return extended(command, parameter, added, build)

    return decorate


def _option(item: Setting, hint: Any, panel: str | None, defaults: bool) -> inspect.Parameter:
    """Return a setting as a parameter for Typer, with its default or with None."""
    kinds = [kind for kind in get_args(hint) if kind is not NoneType] if NoneType in get_args(hint) else [hint]
    kind, spec, default = kinds[0], item.spec, item.default if defaults else None
    if get_origin(kind) is tuple:
        kind, default = list[get_args(kind)[0]], None  # type: ignore[misc]
    shown = (spec.unset if defaults else "") or not (default is None or default is False or default == "")
    option = typer.Option(
        item.flag, help=spec.help, min=spec.at_least, max=spec.at_most, show_default=shown, rich_help_panel=panel
    )
    return keyword(item.name, kind, option, default)


def keyword(name: str, kind: Any, option: Any, default: Any = None) -> inspect.Parameter:
    """Return a keyword parameter of a command."""
    annotation: Any = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def extended(
    command: Command, parameter: str, added: Sequence[inspect.Parameter], build: Callable[[dict[str, Any]], Any]
) -> Command:
    """Replace a parameter of a command by options. It receives `build` of those that are not None, by name."""
    signature = inspect.signature(command, eval_str=True)
    parameters = [*(item for item in signature.parameters.values() if item.name != parameter), *added]
    parameters.sort(key=lambda item: item.kind)

    @wraps(command)
    def run(**given: Any) -> None:
        values = {item.name: given.pop(item.name) for item in added}
        command(**given, **{parameter: build({name: value for name, value in values.items() if value is not None})})

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {item.name: item.annotation for item in parameters} | {"return": None}
    return run


class PlainCommand(TyperCommand):
    """A command whose option --help has no type, as other flags."""

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.metavar = ""
        return option


def with_metavars(command: Command) -> Command:
    """Name the values of all options in the same words as the settings of methods: INTEGER, NUMBER, TEXT, FILE or a|b."""
    signature = inspect.signature(command, eval_str=True)
    for item in signature.parameters.values():
        kind, *information = get_args(item.annotation) or (item.annotation,)
        if information and isinstance(information[0], OptionInfo) and information[0].metavar is None:
            information[0].metavar = _metavar(kind)
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {item.name: item.annotation for item in signature.parameters.values()} | {"return": None}
    return command


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if kinds := [part for part in get_args(kind) if part is not NoneType]:  # list[...], or ... | None
        return _metavar(kinds[0])
    return str({**NAMES, bool: "", Path: "FILE"}[kind])


with_placement = with_options(Placement, "placement", MODELS)
