"""Options and help texts that several commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from cards.placement import Placement
from cards.prompts import FORMS

OUTPUT, MODELS = "Output", "Models"
METHOD = "Decoding method; `cards methods` lists them."
MAX_TOKENS = "Maximum number of new tokens."
STOP = "End the response before this text (repeatable; \\n is a newline)."
DEADLINE = "Seconds after which the response so far is returned."
RAW = "Use the prompt as raw text, without the chat template."
PROMPT_SOURCE = "Prompts: tiny, a data set, or a file (see `cards bench --prompts`)."
FORM = f"Prompt format: {', '.join(FORMS)}."
CONCURRENCY, SLOTS = "Maximum number of concurrent requests.", "the number of slots"
GOLD = "Reward model used only for grading, or none."
MODEL = typer.Option(
    help="Language model: tiny, a folder, a Hugging Face name, vllm:NAME, or an http:// address.", rich_help_panel=MODELS
)
REWARD = typer.Option(
    help="Reward: a model, named like --model, another kind of reward (docs/rewards.md), or none.", rich_help_panel=MODELS
)
DEFAULT = Placement()
PLACEMENT: dict[str, tuple[Any, Any]] = {  # type and option by field of Placement
    "device": (str, typer.Option(help="Device: auto, cpu, cuda, cuda:1, ...", show_default=DEFAULT.device)),
    "dtype": (str, typer.Option(help="Data type: auto, float32, bfloat16 or float16.", show_default=DEFAULT.dtype)),
    "slots": (int, typer.Option(min=1, help="Number of cache slots.", show_default="chosen by the back end")),
    "context": (int, typer.Option(min=2, help="Maximum number of tokens of prompt and response.")),
    "draft": (str, typer.Option(help="Draft model for exact speculative sampling, with the same tokenizer.")),
    "gamma": (int, typer.Option(min=1, help="Number of draft tokens per round.", show_default=str(DEFAULT.gamma))),
    "skip_layers": (float, typer.Option(help="Draft with the model itself, without this fraction of its layers.")),
}


def with_placement(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of Placement to a command. Its parameter `placed: dict[str, Any]` receives those that were given."""
    signature = inspect.signature(command, eval_str=True)
    parameters = [p for p in signature.parameters.values() if p.name != "placed"]
    for name, (kind, option) in PLACEMENT.items():
        option.rich_help_panel = MODELS
        annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))

    @wraps(command)
    def placed_command(**given: Any) -> None:
        placed = {name: given.pop(name) for name in PLACEMENT}
        command(placed={name: value for name, value in placed.items() if value is not None}, **given)

    parameters.sort(key=lambda parameter: parameter.kind)
    placed_command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    placed_command.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    return placed_command
