"""Loading of engines by name, from the back ends of this package and of plug-ins (entry points `cards.backends`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pkgutil import resolve_name
from typing import Any, Protocol

from cards.engines.base import Engine
from cards.engines.speculative import SpeculativeEngine
from cards.errors import MismatchError, check
from cards.plugins import plugins


class Backend(Protocol):
    """A loader of models by name. The name includes its prefix (`vllm:NAME`)."""

    def load_engine(self, name: str, **options: Any) -> Engine: ...

    def load_reward(self, name: str, **options: Any) -> Any: ...  # a Reward, but this layer cannot import that class


@dataclass(frozen=True, slots=True)
class BuiltinBackend:
    """A back end in `cards.backends`, imported when a model is loaded: its two loaders, which get names without `prefix`."""

    engine: str
    reward: str
    prefix: str = ""

    def load_engine(self, name: str, **options: Any) -> Any:
        return resolve_name(f"cards.backends.{self.engine}")(name.removeprefix(self.prefix), **options)

    def load_reward(self, name: str, **options: Any) -> Any:
        return resolve_name(f"cards.backends.{self.reward}")(name.removeprefix(self.prefix), **options)


LOCAL = BuiltinBackend("local.engine:TransformersEngine.load", "local.rewards:ClassifierReward.load")
HTTP = BuiltinBackend("http.connect:connect_engine", "http.connect:connect_reward")
LLAMACPP = BuiltinBackend("llamacpp.engine:LlamaEngine.load", "local.rewards:ClassifierReward.load")
VLLM = BuiltinBackend("vllm.engine:VLLMEngine.load", "vllm.rewards:VLLMReward.load", "vllm:")
BACKENDS = {"vllm": VLLM, "http": HTTP, "https": HTTP}
EMBEDDED = frozenset({"tiny", "tiny-draft", "tiny-aligned"})


def is_embedded(name: str) -> bool:
    """Return whether this is the name of an LM embedded in the package."""
    return name.removeprefix(VLLM.prefix) in EMBEDDED


def backend(name: str) -> Backend:
    """Return the back end of a model's name: that of its prefix, llama.cpp for GGUF files, otherwise transformers."""
    prefix = name.partition(":")[0]
    found = BACKENDS.get(prefix) or _plugin_backends().get(prefix)
    return found or (LLAMACPP if name.lower().endswith(".gguf") else LOCAL)


@cache
def _plugin_backends() -> dict[str, Any]:
    return plugins("cards.backends", _prefix, BACKENDS)


def _prefix(name: str, found: Any) -> str:
    if not (callable(getattr(found, "load_engine", None)) and callable(getattr(found, "load_reward", None))):
        raise MismatchError("it has no load_engine and load_reward")
    return name


def load_engine(
    name: str, *, draft: str | Engine | None = None, gamma: int = 4, skip_layers: float | None = None, **options: Any
) -> Engine:
    """Load an LM: `tiny` (embedded), a folder, a Hugging Face name, a GGUF file, `vllm:NAME`, an http(s) address,
    PREFIX:NAME of a plug-in.

    draft: a smaller LM with the same tokenizer, or its name, that drafts `gamma` tokens. skip_layers: draft with the model
    itself, without this fraction of its layers. Speculative sampling with either is exact: it does not change the distribution
    of responses. options: options of the back end, such as device, dtype, slots and context.
    Raises UnknownNameError, ModelError, MismatchError or SettingError.
    """
    check(draft is None or skip_layers is None, f"Give either draft or skip_layers, got {draft!r} and {skip_layers}.")
    engine = backend(name).load_engine(name, **options)
    if skip_layers is not None:
        return SpeculativeEngine(engine, engine.without_layers(skip_layers), gamma)
    if draft is not None:
        return SpeculativeEngine(engine, load_engine(draft, **options) if isinstance(draft, str) else draft, gamma)
    return engine
