"""Options that several commands have: which models run, and where."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

OUTPUT, MODELS = "Output", "Models"
MODEL = typer.Option(help="tiny, a folder, a Hugging Face name, vllm:NAME, or an http address.", rich_help_panel=MODELS)
REWARD = typer.Option(help="Reward model, named the same way, another kind (docs/rewards.md), or none.", rich_help_panel=MODELS)
PLACEMENT: dict[str, tuple[Any, Any]] = {  # type and option by field of Placement
    "device": (str, typer.Option(help="auto, cpu, cuda, cuda:1, ...", show_default="auto")),
    "dtype": (str, typer.Option(help="auto, float32, bfloat16 or float16.", show_default="auto")),
    "slots": (int, typer.Option(min=1, help="Sequences decoded at once.", show_default="32")),
    "context": (int, typer.Option(min=2, help="Maximum number of tokens of prompt and response.")),
    "draft": (str, typer.Option(help="Smaller LM of the same tokenizer that writes ahead (exact speculative sampling).")),
    "gamma": (int, typer.Option(min=1, help="Tokens that the draft writes ahead.", show_default="4")),
    "skip_layers": (float, typer.Option(help="Draft with the model itself, without this fraction of its layers.")),
}


def with_placement(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command with a parameter `placed: dict[str, Any]` the options of Placement; it gets those that were given."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.name != "placed"]
    for name, (kind, option) in PLACEMENT.items():
        option.rich_help_panel = MODELS
        annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
        own.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))

    @wraps(command)
    def placed_command(**given: Any) -> None:
        placed = {name: given.pop(name) for name in PLACEMENT}
        command(placed={name: value for name, value in placed.items() if value is not None}, **given)

    own.sort(key=lambda parameter: parameter.kind)
    placed_command.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
    placed_command.__annotations__ = {p.name: p.annotation for p in own} | {"return": None}
    return placed_command
