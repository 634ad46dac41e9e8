"""Check and load the models of a command under a spinner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cards.console import one_line_warnings, spinner, stderr_console
from cards.decoder import Decoder
from cards.methods.base import Method
from cards.placement import Placement
from cards.study.models import Models

CheckChats = Callable[[bool], None]


def load_models(
    model: str,
    reward: str,
    gold: str,
    placement: Placement,
    methods: Iterable[Method] = (),
    check_chats: CheckChats | None = None,
) -> Models:
    """Load the LM, the reward and the gold reward (each may be `none`), after checking them and the models of the methods.

    check_chats: is called with whether the LM has a chat template, before loading if that is known then, and after loading.
    Raises its errors and those of `load_engine` and `load_reward`.
    """
    loaded = load_named({"--model": model, "--reward": reward, "--gold": gold}, placement, methods, check_chats)
    if check_chats is not None:
        check_chats(loaded["--model"].chats)
    return Models(loaded["--model"], loaded.get("--reward"), loaded.get("--gold"), placement)


def load_decoder(
    model: str, reward: str, method: Method, placement: Placement, check_chats: CheckChats | None = None
) -> Decoder:
    """Load models and return a decoder. The reward is loaded only if the method needs one. Raises as `load_models`."""
    models = load_models(model, reward if "reward" in method.needed else "none", "none", placement, [method], check_chats)
    with one_line_warnings():
        return models.decoder(method)


def load_named(
    wanted: Mapping[str, str], placement: Placement, methods: Iterable[Method] = (), check_chats: CheckChats | None = None
) -> dict[str, Any]:
    """Load the LM of `--model` and the rewards of all other options, except those named `none`.

    All of them are checked, and their weights downloaded, before the first one is loaded. Raises as `load_models`.
    """
    names = {option: name for option, name in wanted.items() if name != "none"}
    listed = ", ".join(dict.fromkeys(names.values()))
    with one_line_warnings(notes=True):
        with spinner(stderr_console(), f"checking {listed}"):
            checked = placement.check(names, methods, check_chats)
        for model in checked:
            model.fetch()
        with spinner(stderr_console(), f"loading {listed}"):
            return {
                option: (placement.load_engine if option == "--model" else placement.load_reward)(name)
                for option, name in names.items()
            }
