"""The `cards` command. Importing it or showing its help loads no model code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import cards
from cards.cli import batch, bench, calibrate, compare, diagnose, evaluate, generate, methods, preferences, serve
from cards.cli.options import PlainCommand, with_metavars
from cards.console import show_error
from cards.errors import CardsError


class Commands(TyperGroup):
    """Commands that report user errors as one red line with exit code 2. Other exceptions keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CardsError as error:
            show_error(str(error))
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"cards {cards.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Make a language model produce responses that a reward model prefers, without training."""


def _add(command: Callable[..., None]) -> None:
    """Add a command whose help is its docstring, with one line per paragraph so that terminals wrap it."""
    paragraphs = (command.__doc__ or "").split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    app.command(help=text, cls=getattr(command, "command_class", PlainCommand))(with_metavars(command))


_add(generate.generate)
_add(compare.compare)
_add(batch.batch)
_add(bench.bench)
_add(calibrate.calibrate)
_add(diagnose.diagnose)
_add(evaluate.evaluate)
_add(preferences.preferences)
_add(serve.serve)
_add(methods.methods)


def main() -> None:
    app()
