"""Loading of engines by name, from the back ends of this package and of plug-ins (entry points `cards.backends`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pkgutil import resolve_name
from typing import Any, Protocol

from cards.engines.base import Engine
from cards.engines.mixture import Mixture
from cards.engines.prompt_lookup import PromptLookupEngine, is_lookup
from cards.engines.speculative import SpeculativeEngine
from cards.errors import MismatchError, check, require
from cards.plugins import plugins
from cards.prompts import check_template


class Checked(Protocol):
    """A model that was checked without its weights."""

    def fetch(self) -> None:
        """Download the weights that are not on this machine. Raises ModelError."""

    def shares_tokenizer(self, other: Any) -> bool:
        """Return whether another checked LM of this back end has the same tokenizer. Raises ModelError."""

    @property
    def chats(self) -> bool | None:
        """Whether the tokenizer has a chat template; None if that is not known yet."""


class Backend(Protocol):
    """A loader of models by name. The name includes its prefix (`vllm:NAME`).

    A back end that can check models without their weights has `check_engine` and `check_reward` too, with the same arguments.
    """

    def load_engine(self, name: str, **options: Any) -> Engine: ...

    def load_reward(self, name: str, **options: Any) -> Any: ...  # a Reward, but this layer cannot import that class


@dataclass(frozen=True, slots=True)
class BuiltinBackend:
    """A back end in `cards.backends`, imported when a model is loaded: its two loaders, which get names without `prefix`.

    check: the function (name, kind, **options) that checks an LM ("lm") or a reward model ("rm") without its weights,
    whose name has no `prefix` either.
    """

    engine: str
    reward: str
    prefix: str = ""
    needs: tuple[str, ...] = ()  # modules of `extra`
    extra: str = ""
    check: str = ""

    def check_installed(self, name: str) -> None:
        """Raise MissingExtraError if the modules that a model of this back end needs are not installed."""
        require(f"Model {name!r}", self.extra, *self.needs)

    def load_engine(self, name: str, **options: Any) -> Any:
        self.check_installed(name)
        return resolve_name(f"cards.backends.{self.engine}")(name.removeprefix(self.prefix), **options)

    def load_reward(self, name: str, **options: Any) -> Any:
        self.check_installed(name)
        return resolve_name(f"cards.backends.{self.reward}")(name.removeprefix(self.prefix), **options)

    def check_engine(self, name: str, **options: Any) -> list[Checked]:
        return self._check(name, "lm", options)

    def check_reward(self, name: str, **options: Any) -> list[Checked]:
        return self._check(name, "rm", options)

    def _check(self, name: str, kind: str, options: dict[str, Any]) -> list[Checked]:
        self.check_installed(name)
        if not self.check:
            return []
        found: list[Checked] = resolve_name(f"cards.backends.{self.check}")(name.removeprefix(self.prefix), kind, **options)
        return found


LOCAL = BuiltinBackend(
    "local.engine:TransformersEngine.load",
    "local.rewards:ClassifierReward.load",
    needs=("torch", "transformers"),
    extra="local",
    check="check:check_local",
)
HTTP = BuiltinBackend("http.connect:connect_engine", "http.connect:connect_reward")
LLAMACPP = BuiltinBackend(
    "llamacpp.engine:LlamaEngine.load", "llamacpp.rewards:LlamaReward.load", check="llamacpp.check:check_gguf"
)
VLLM = BuiltinBackend(
    "vllm.engine:VLLMEngine.load", "vllm.rewards:VLLMReward.load", "vllm:", ("vllm",), "vllm", "check:check_vllm"
)
BACKENDS = {"vllm": VLLM, "http": HTTP, "https": HTTP}
HUB = frozenset({"trust_remote_code", "token"})  # options for names of Hugging Face
EMBEDDED = frozenset({"tiny", "tiny-draft", "tiny-aligned"})


def is_embedded(name: str) -> bool:
    """Return whether this is the name of an LM embedded in the package."""
    return name.removeprefix(VLLM.prefix) in EMBEDDED


def backend(name: str) -> Backend:
    """Return the back end of a model's name: that of its prefix, llama.cpp for GGUF files, otherwise transformers."""
    prefix = name.partition(":")[0]
    found = BACKENDS.get(prefix) or _plugin_backends().get(prefix)
    return found or (LLAMACPP if name.lower().endswith(".gguf") else LOCAL)


def options_for(found: Backend, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a back end: `llama` has those for GGUF files alone, because a command can load several kinds."""
    others = {name: value for name, value in options.items() if name != "llama"}
    if found is not LLAMACPP:
        return others
    llama: dict[str, Any] = options.get("llama", {})
    return {name: value for name, value in others.items() if name not in HUB} | llama


@cache
def _plugin_backends() -> dict[str, Any]:
    return plugins("cards.backends", _prefix, BACKENDS)


def _prefix(name: str, found: Any) -> str:
    if not (callable(getattr(found, "load_engine", None)) and callable(getattr(found, "load_reward", None))):
        raise MismatchError("it has no load_engine and load_reward")
    return name


def check_engine(name: str, **options: Any) -> list[Checked]:
    """Check an LM without its weights, with the arguments and errors of `load_engine`. It is empty if nothing is known."""
    found = backend(name)
    check: Callable[..., list[Checked]] | None = getattr(found, "check_engine", None)
    return check(name, **options_for(found, options)) if check is not None else []


def load_engine(
    name: str,
    *,
    mix: Mixture | None = None,
    draft: str | Engine | None = None,
    gamma: int = 4,
    skip_layers: float | None = None,
    chat_template: str | None = None,
    **options: Any,
) -> Engine:
    """Load an LM, as `cards.load_engine` does. `mix` is a rule whose models are loaded: this layer cannot read it as text."""
    check(draft is None or skip_layers is None, f"Give either draft or skip_layers, got {draft!r} and {skip_layers}.")
    found = backend(name)
    engine: Engine = found.load_engine(name, **options_for(found, options))
    if chat_template is not None:
        engine.use_template(check_template(chat_template))
    mixed = engine if mix is None else mix.over(engine)
    if skip_layers is not None:
        return SpeculativeEngine(mixed, engine.without_layers(skip_layers), gamma)
    if isinstance(draft, str) and is_lookup(draft):
        return PromptLookupEngine.named(draft, mixed, gamma)
    if draft is not None:
        return SpeculativeEngine(mixed, load_engine(draft, **options) if isinstance(draft, str) else draft, gamma)
    return mixed
