"""`cards generate`: generate one response, or chat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cards.cli.chat import chat, continue_text
from cards.cli.models import load_decoder
from cards.cli.options import JSON, METHOD, METHOD_FLAGS, MODEL, OUTPUT, REWARD, SHAPING, with_options, with_placement
from cards.cli.profile import PROFILE, profiled
from cards.cli.respond import ResponseOptions, respond
from cards.cli.settings import method_of, with_settings
from cards.cli.stdin import prompt_text
from cards.cli.view import View
from cards.console import one_line_warnings
from cards.errors import SettingError
from cards.events import Message, Result
from cards.placement import Placement, reward_for
from cards.prompts import PromptOptions
from cards.shaping import ShapingOptions


@with_settings
@with_options(ResponseOptions, "options")
@with_options(PromptOptions, "prompting")
@with_options(ShapingOptions, "shape", SHAPING)
@with_placement
def generate(
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="Prompt; piped input follows it.")] = None,
    method: Annotated[str, typer.Option(*METHOD_FLAGS, help=METHOD)] = "cards",
    model: Annotated[str, MODEL] = "tiny",
    reward: Annotated[str | None, REWARD] = None,
    profile: Annotated[Path | None, PROFILE] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Show every candidate and its verdict.", rich_help_panel=OUTPUT)
    ] = False,
    json: Annotated[bool, JSON] = False,
    *,
    options: ResponseOptions,
    prompting: PromptOptions,
    shape: ShapingOptions,
    placement: Placement,
    settings: dict[str, str],
) -> None:
    """Generate a response to TEXT, or chat if TEXT is omitted.

    TEXT is a user message if the model has a chat template, or --chat-template gives one. Otherwise, and with --raw,
    the model continues TEXT. Segments are printed as they are accepted. Piped input follows TEXT:
    cat letter.txt | cards generate "Summarise:"
    """
    chosen = method_of(method, profiled(profile, method, model, reward, placement.mix, settings, options.max_tokens))
    reward, shaping = reward_for(model, reward, [chosen]), shape.shaping
    text = prompt_text(text, chats=True)
    if text is None and json:
        raise SettingError("A chat does not support --json: give a text, or pipe one in.")
    decoder = load_decoder(model, reward, chosen, placement, prompting.check_template)

    def run(prompt: str | Sequence[Message]) -> Result:
        with one_line_warnings(), View(trace=trace, silent=json, strip=not isinstance(prompt, str)) as view:
            return respond(decoder, prompt, view, options, trace, shaping)

    if text is None:
        chats = decoder.engine.chats
        if chats and not prompting.raw:
            chat(lambda conversation: run(prompting.prompt(conversation, chats)))
        else:
            continue_text(run, "" if chats else model)
        return
    result = run(prompting.prompt(text, decoder.engine.chats))
    if json:
        typer.echo(result.to_json())
    if result.finish_reason == "interrupted":
        raise typer.Exit(130)
