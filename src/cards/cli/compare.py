"""`cards compare`: run several methods on one prompt, side by side."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from cards.cli.arms import METHOD_HELP, arms_of
from cards.cli.board import Board, Pane
from cards.cli.models import load_models
from cards.cli.options import GOLD, JSON, MODEL, REWARD, SHAPING, with_options, with_placement
from cards.cli.profile import PROFILE, with_profile
from cards.cli.respond import ResponseOptions, respond
from cards.cli.stdin import prompt_text
from cards.console import one_line_warnings
from cards.decoder import PromptLike
from cards.errors import CardsError
from cards.events import Response
from cards.placement import Placement, reward_for
from cards.prompts import PromptOptions
from cards.shaping import Shaping, ShapingOptions
from cards.study.models import Models
from cards.study.tables import FORMAT

METHODS = ["vanilla", "best-of-n", "cards"]


@with_options(ResponseOptions, "options")
@with_options(PromptOptions, "prompting")
@with_options(ShapingOptions, "shape", SHAPING)
@with_placement
def compare(
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="Prompt; piped input follows it.")] = None,
    method: Annotated[
        list[str] | None, typer.Option("--method", "-m", help=METHOD_HELP, show_default=", ".join(METHODS))
    ] = None,
    model: Annotated[str, MODEL] = "tiny",
    reward: Annotated[str | None, REWARD] = None,
    gold: Annotated[str, GOLD] = "none",
    profile: Annotated[Path | None, PROFILE] = None,
    json: Annotated[bool, JSON] = False,
    *,
    options: ResponseOptions,
    prompting: PromptOptions,
    shape: ShapingOptions,
    placement: Placement,
) -> None:
    """Compare several methods on one prompt, side by side.

    The methods run one after another, each with empty caches, so that their times are comparable. Ctrl-C stops the current
    method, keeps its response so far, and skips the remaining methods. If a method fails, the others still run.
    """
    shaping = shape.shaping
    arms = arms_of(with_profile(profile, method or METHODS, model, reward, placement.mix, options.max_tokens))
    reward = reward_for(model, reward, [arm.method for arm in arms])
    text = prompt_text(text) or ""
    models = load_models(model, reward, gold, placement, [arm.method for arm in arms], prompting.check_template)
    prompt = prompting.prompt(text, models.engine.chats)
    models.run(models.warm_up(prompt))
    panes = [Pane(arm) for arm in arms]
    with one_line_warnings(), Board(panes, silent=json):
        for number, pane in enumerate(panes):
            if _run(models, prompt, pane, options, shaping):
                for skipped in panes[number + 1 :]:
                    skipped.ending = "not run"
                break
    if json:
        typer.echo(dumps({"format": FORMAT, "prompt": text, "answers": [pane.to_dict() for pane in panes]}, ensure_ascii=False))
    if any(pane.ending == "interrupted" for pane in panes):
        raise typer.Exit(130)
    if any(pane.error for pane in panes):
        raise typer.Exit(2)


def _run(models: Models, prompt: PromptLike, pane: Pane, options: ResponseOptions, shaping: Shaping) -> bool:
    """Run one method and grade its response. Return whether Ctrl-C interrupted it."""
    models.forget()
    try:
        decoder = models.decoder(pane.arm.method)
        pane.ending = "decoding"
        result = respond(decoder, prompt, pane, options, shaping=shaping)
        interrupted = result.finish_reason == "interrupted"
        response = Response(result.text, result.token_ids, None if interrupted else result.finish_reason)
        pane.grades = models.run(models.grades(prompt, None, response))
    except CardsError as error:
        pane.error = str(error)
        return False
    return interrupted
