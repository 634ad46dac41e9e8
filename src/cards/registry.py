"""Names of methods and the classes behind them, imported on first use."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from cards.errors import UnknownNameError

if TYPE_CHECKING:
    from cards.engines.base import Engine
    from cards.methods.base import Method
    from cards.rewards.base import Reward

METHODS = {
    "cards": "cards.methods.cards:CARDS",
    "vanilla": "cards.methods.vanilla:Vanilla",
    "best-of-n": "cards.methods.best_of_n:BestOfN",
    "rejection-sampling": "cards.methods.rejection:RejectionSampling",
}


def method_class(name: str) -> type[Method]:
    """The class of a method name. Raises UnknownNameError."""
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    module, attribute = METHODS[name].split(":")
    return cast("type[Method]", getattr(import_module(module), attribute))


def make_method(name: str, **settings: Any) -> Method:
    """A method by name with settings by name. Raises UnknownNameError or SettingError."""
    cls = method_class(name)
    known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    for setting in settings:
        if setting not in known:
            raise UnknownNameError(f"setting of method {name!r}:", setting, known)
    return cls(**settings)


def load_engine(name: str, **options: Any) -> Engine:
    """The engine of a model name: `tiny`, a folder or a Hugging Face name."""
    from cards.engines.transformers import TransformersEngine

    return TransformersEngine.load(name, **options)


def load_reward(name: str, **options: Any) -> Reward:
    """The reward of a model name: `tiny`, a folder or a Hugging Face name."""
    from cards.rewards.classifier import ClassifierReward

    return ClassifierReward.load(name, **options)
