"""Engines by name: the back ends that come with the package, and those of plug-ins (entry points `cards.backends`)."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any, Protocol, cast

from cards.engines.base import Engine
from cards.engines.speculative import SpeculativeEngine
from cards.errors import MismatchError, check
from cards.plugins import plugins

LOCAL = "cards.backends.local.models"
BACKENDS = {
    "vllm": "cards.backends.vllm.models",
    "http": "cards.backends.http.models",
    "https": "cards.backends.http.models",
}


class Backend(Protocol):
    """Loads models by name; the name comes with its prefix (`vllm:NAME`)."""

    def load_engine(self, name: str, **options: Any) -> Engine: ...

    def load_reward(self, name: str, **options: Any) -> Any: ...  # a Reward, which is a layer above


@cache
def backend(prefix: str) -> Backend:
    """The back end of model names with this prefix; names without a known prefix are models in this process."""
    if prefix not in BACKENDS and prefix in (found := plugins("cards.backends", _prefix, BACKENDS)):
        return cast(Backend, found[prefix])
    return cast(Backend, import_module(BACKENDS.get(prefix, LOCAL)))


def _prefix(name: str, found: Any) -> str:
    if not (callable(getattr(found, "load_engine", None)) and callable(getattr(found, "load_reward", None))):
        raise MismatchError("it has no load_engine and load_reward")
    return name


def load_engine(
    name: str, *, draft: str | Engine | None = None, gamma: int = 4, skip_layers: float | None = None, **options: Any
) -> Engine:
    """Load an LM: `tiny` (embedded), a folder, a Hugging Face name, `vllm:NAME`, an http(s) address, PREFIX:NAME of a plug-in.

    draft: a smaller LM of the same tokenizer, or its name, that writes `gamma` tokens ahead; skip_layers: the fraction of the
    model's own layers that such a draft skips. Both make decoding faster and leave its law as it is (exact speculative
    sampling). options: those of the back end, such as device, dtype, slots and context.
    Raises UnknownNameError, ModelError, MismatchError or SettingError.
    """
    check(draft is None or skip_layers is None, "A model has one draft: give draft or skip_layers, not both.")
    engine = backend(name.partition(":")[0]).load_engine(name, **options)
    if skip_layers is not None:
        return SpeculativeEngine(engine, engine.without_layers(skip_layers), gamma)
    if draft is not None:
        return SpeculativeEngine(engine, load_engine(draft, **options) if isinstance(draft, str) else draft, gamma)
    return engine
