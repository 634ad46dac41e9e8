"""Load the models of a command under a spinner."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cards.console import one_line_warnings, spinner, stderr_console
from cards.decoder import Decoder
from cards.errors import ModelError, UnknownNameError
from cards.methods.base import Method
from cards.placement import Placement
from cards.rewards.loader import reward_classes
from cards.study.models import Models


def load_models(model: str, reward: str, gold: str, placement: Placement) -> Models:
    """Load the LM, the reward and the gold reward (each may be `none`) under a spinner. Raises ModelError."""
    loaded = load_named({"--model": model, "--reward": reward, "--gold": gold}, placement)
    return Models(loaded["--model"], loaded.get("--reward"), loaded.get("--gold"), placement)


def load_decoder(model: str, reward: str, method: Method, placement: Placement) -> Decoder:
    """Load models and return a decoder. The reward is loaded only if the method needs one."""
    models = load_models(model, reward if "reward" in method.needed else "none", "none", placement)
    with one_line_warnings():
        return models.decoder(method)


def load_named(wanted: Mapping[str, str], placement: Placement) -> dict[str, Any]:
    """Load the LM of `--model` and the rewards of all other options, except those named `none`. Raises ModelError."""
    names = {option: name for option, name in wanted.items() if name != "none"}
    loaded: dict[str, Any] = {}
    with ExitStack() as stack:
        stack.enter_context(one_line_warnings(notes=True))
        if all(is_local(name) for name in names.values()):  # downloads show their own bars
            _hide_bars()
            stack.enter_context(spinner(stderr_console(), f"loading {', '.join(dict.fromkeys(names.values()))}"))
        for option, name in names.items():
            try:
                loaded[option] = (placement.load_engine if option == "--model" else placement.load_reward)(name)
            except UnknownNameError as error:
                if is_local(name) or "/" not in name:
                    raise
                why = str(error.__cause__ or "not found").strip().splitlines()[0].rstrip(".:")
                raise ModelError(
                    f"{name!r} is not a local folder and cannot be downloaded from the Hugging Face Hub: {why}. Download it on "
                    f"a machine with network access and give its folder: {option} FOLDER."
                ) from error
    return loaded


def is_local(name: str) -> bool:
    """Return whether loading this model or reward downloads nothing."""
    kind, _, details = name.partition(":")
    if kind in ("regex", "keywords", "length", "json"):
        return True
    models = details.rpartition(":")[2].split(",") if kind in reward_classes() else [name]
    return all(model.startswith("tiny") or Path(model).exists() for model in models)


def _hide_bars() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
