"""The `cards` command. Importing it, and asking it for help, loads no model code."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import cards
from cards.cli import batch, bench, calibrate, compare, diagnose, evaluate, generate, methods, preferences, serve
from cards.console import show_error
from cards.errors import CardsError


class Commands(TyperGroup):
    """What went wrong on the user's side is one red line and exit code 2; everything else keeps its traceback."""

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


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cards {cards.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Aligned text at decoding time: a reward model steers a language model while it decodes."""


app.command()(generate.generate)
app.command()(compare.compare)
app.command()(batch.batch)
app.command()(bench.bench)
app.command()(calibrate.calibrate)
app.command()(diagnose.diagnose)
app.command()(evaluate.evaluate)
app.command()(preferences.preferences)
app.command()(serve.serve)
app.command()(methods.methods)


def main() -> None:
    app()
