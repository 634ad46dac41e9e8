"""`cards generate`: one answer, or a chat."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from cards.boundaries import unescape
from cards.cli.answer import Options, answer
from cards.cli.chat import chat
from cards.cli.options import MODEL, OUTPUT, REWARD, with_placement
from cards.cli.profile import PROFILE, profiled
from cards.cli.settings import method_of, with_settings
from cards.cli.view import View
from cards.console import one_line_warnings, spinner, stderr_console
from cards.decoder import Decoder
from cards.errors import PromptError, SettingError
from cards.events import Message, Result
from cards.methods.base import Method
from cards.placement import Placement
from cards.prompts import format_prompt
from cards.rewards.loader import reward_classes


@with_settings
@with_placement
def generate(
    text: Annotated[str | None, typer.Argument(help="What to answer; - or nothing reads standard input.")] = None,
    method: Annotated[str, typer.Option(help="Decoding method; `cards methods` lists them.")] = "cards",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same text.")] = 0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")] = 128,
    stop: Annotated[list[str] | None, typer.Option(help="End the answer before this text (repeatable; \\n: new line).")] = None,
    deadline: Annotated[float | None, typer.Option(help="Seconds after which the answer so far is taken.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it stands, without chat template.")] = False,
    model: Annotated[str, MODEL] = "tiny",
    reward: Annotated[str, REWARD] = "tiny",
    profile: Annotated[Path | None, PROFILE] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Show every candidate and its verdict.", rich_help_panel=OUTPUT)
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=OUTPUT)] = False,
    *,
    placed: dict[str, Any],
    **settings: str | None,
) -> None:
    """Answer TEXT, or chat when there is none.

    The text is a user's message if the model has a chat template. Accepted segments appear as they are accepted.
    """
    chosen = method_of(method, profiled(profile, method, model, reward, settings))
    interactive = text is None and at_terminal()
    if interactive and (raw or json):
        raise SettingError(f"A chat cannot be {'raw' if raw else 'printed as JSON'}: give a text, or pipe one in.")
    if text in (None, "-") and not interactive:
        text = sys.stdin.read()
    if text is not None and not text.strip():
        raise PromptError("The prompt is empty: give the text to answer.")
    decoder = load(model, reward, chosen, Placement(**placed))
    options = Options(max_tokens=max_tokens, seed=seed, stop=[unescape(s) for s in stop or ()], deadline=deadline, trace=trace)

    def run(prompt: str | Sequence[Message]) -> Result:
        view = View(trace=trace, silent=json, strip=not isinstance(prompt, str))
        with one_line_warnings():
            return answer(decoder, prompt, view, options)

    if text is None:
        if not decoder.engine.chats:
            raise PromptError(f"Model {model!r} has no chat template, so it cannot chat: give a text to continue.")
        chat(run)
        return
    result = run(format_prompt(text, "raw" if raw else "auto", decoder.engine.chats))
    if json:
        typer.echo(result.to_json())
    if result.finish_reason == "interrupted":
        raise typer.Exit(130)


def load(model: str, reward: str, method: Method, placement: Placement) -> Decoder:
    """The decoder of these names, under a spinner; the reward is left out where the method has no use for it."""
    guided = "reward" in method.needed and reward != "none"
    with ExitStack() as stack:
        stack.enter_context(one_line_warnings())
        if all(is_local(name) for name in (model, *([reward] if guided else []))):  # downloads show bars of their own
            hide_bars()
            stack.enter_context(spinner(stderr_console(), f"loading {model}{f' and the reward {reward}' if guided else ''}"))
        engine = placement.engine(model)
        return Decoder(engine, placement.reward(reward) if guided else None, method)


def at_terminal() -> bool:
    return sys.stdin.isatty()


def is_local(name: str) -> bool:
    kind, _, details = name.partition(":")
    if kind in ("regex", "keywords", "length", "json"):
        return True
    models = details.rpartition(":")[2].split(",") if kind in reward_classes() else [name]
    return all(model.startswith("tiny") or Path(model).exists() for model in models)


def hide_bars() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
