"""Names of methods, kinds of rewards and back ends: those that come with the package, and those of plug-ins.

A package adds its own through the entry points `cards.methods` and `cards.rewards` (classes) and `cards.backends` (an object
with `load_engine` and `load_reward`, for model names that begin with the entry point's name and a colon).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, cast

import cards.methods
import cards.rewards
from cards.engines.base import Engine
from cards.engines.speculative import SpeculativeEngine
from cards.errors import MismatchError, UnknownNameError, check
from cards.methods.base import FAMILIES, Method
from cards.rewards.base import Reward
from cards.rewards.combine import WeightedSum
from cards.settings import settings_of

log = logging.getLogger("cards")
LOCAL = "cards.backends.local.models"
BACKENDS = {
    "vllm": "cards.backends.vllm.models",
    "http": "cards.backends.http.models",
    "https": "cards.backends.http.models",
}


class Backend(Protocol):
    """Loads models by name; the name comes with its prefix (`vllm:NAME`)."""

    def load_engine(self, name: str, **options: Any) -> Engine: ...

    def load_reward(self, name: str, **options: Any) -> Reward: ...


@cache
def method_classes() -> dict[str, type[Method]]:
    """All methods by name, grouped by family."""
    own = {cls.name: cls for cls in vars(cards.methods).values() if _is(cls, Method)}
    found = own | _plugins("cards.methods", _method_name, own)
    families = [*FAMILIES, *(cls.family for cls in found.values())]
    return dict(sorted(found.items(), key=lambda item: families.index(item[1].family)))


@cache
def reward_classes() -> dict[str, type[Reward]]:
    """The kinds of rewards that are named as `kind:details`."""
    own = {cls.kind: cls for cls in vars(cards.rewards).values() if _is(cls, Reward) and cls.kind}
    return own | _plugins("cards.rewards", _reward_kind, own)


@cache
def backend(prefix: str) -> Backend:
    """The back end of model names with this prefix; names without a known prefix are models in this process."""
    if prefix not in BACKENDS and prefix in (found := _plugins("cards.backends", _backend_prefix, BACKENDS)):
        return cast(Backend, found[prefix])
    return cast(Backend, import_module(BACKENDS.get(prefix, LOCAL)))


def method_class(name: str) -> type[Method]:
    """The class of a method name. Raises UnknownNameError."""
    if name not in method_classes():
        raise UnknownNameError("method", name, method_classes())
    return method_classes()[name]


def make_method(name: str, **settings: Any) -> Method:
    """A method by name with settings by name. Raises UnknownNameError or SettingError."""
    cls = method_class(name)
    known = settings_of(cls)
    for key in settings:
        if key not in known:
            raise UnknownNameError(f"setting of method {name!r}:", key, known)
    return cls(**settings)


def with_models(
    method: Method,
    main: Engine,
    engine_of: Callable[[str], Engine] | None = None,
    reward_of: Callable[[str], Reward] | None = None,
) -> Method:
    """The method with loaded models in place of the names in its settings.

    Names are loaded by `load_engine` and `load_reward` unless others are given. Raises MismatchError if an engine has another
    vocabulary than `main`, the engine that responds.
    """
    engine_of, reward_of = engine_of or load_engine, reward_of or load_reward
    loaded: dict[str, Any] = {}
    for name, own in settings_of(method).items():
        value = getattr(method, name)
        if own.spec.loads is None or value is None:
            continue
        if own.spec.loads == "reward":
            loaded[name] = reward_of(value) if isinstance(value, str) else value
            continue
        names: Sequence[str | Engine] = (value,)
        if own.spec.loads == "engines":
            names = value.split(",") if isinstance(value, str) else value
        engines = tuple(engine_of(one) if isinstance(one, str) else one for one in names)
        for engine in engines:
            if engine.vocabulary != main.vocabulary:
                raise MismatchError(
                    f"Method {method.name!r} needs models that share a tokenizer, but {engine.name!r} ({name}) and "
                    f"{main.name!r} have different ones."
                )
        loaded[name] = engines if own.spec.loads == "engines" else engines[0]
    return replace(method, **loaded) if loaded else method  # type: ignore[type-var]


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


def load_reward(name: str, **options: Any) -> Reward:
    """Load a reward: the name of a reward model (as for engines), `kind:details`, or a sum of such (`tiny + json`).

    The target of a sum is the sum of the targets. options: those of the back end. Raises UnknownNameError, ModelError or
    SettingError.
    """
    if " + " in name:
        return WeightedSum.of([load_reward(part.strip(), **options) for part in name.split(" + ")])
    kind, colon, details = name.partition(":")
    if kind in reward_classes():
        return reward_classes()[kind].named(details, **options)
    found = backend(kind)
    if colon and found is backend("") and not Path(name).exists():
        raise UnknownNameError("kind of reward", kind, reward_classes(), "Without a colon, a reward is the name of a model.")
    return found.load_reward(name, **options)


def _is(cls: Any, base: type) -> bool:
    return isinstance(cls, type) and issubclass(cls, base)


def _plugins(group: str, name_of: Callable[[str, Any], str], known: Container[str]) -> dict[str, Any]:
    """The objects of a group of entry points by name. A plug-in that cannot be used is reported and skipped."""
    found: dict[str, Any] = {}
    for entry in entry_points(group=group):
        try:
            loaded = entry.load()
            name = name_of(entry.name, loaded)
            if name in known or name in found:
                raise MismatchError(f"the name {name!r} is taken")
        except Exception as error:  # of any kind: it is foreign code
            log.warning("The plug-in %r of %s is skipped: %s", entry.name, group, str(error) or type(error).__name__)
        else:
            found[name] = loaded
    return found


def _method_name(name: str, cls: Any) -> str:
    if not _is(cls, Method):
        raise MismatchError("it is not a subclass of cards.Method")
    settings_of(cls)  # raises TypeError if a setting is not declared with `setting`
    missing = [attribute for attribute in ("name", "family", "summary") if not hasattr(cls, attribute)]
    if missing:
        raise MismatchError(f"its class lacks {', '.join(missing)}")
    return cast(str, cls.name)


def _reward_kind(name: str, cls: Any) -> str:
    if not (_is(cls, Reward) and cls.kind):
        raise MismatchError("it is not a subclass of cards.Reward with a kind")
    return cast(str, cls.kind)


def _backend_prefix(name: str, found: Any) -> str:
    if not (callable(getattr(found, "load_engine", None)) and callable(getattr(found, "load_reward", None))):
        raise MismatchError("it has no load_engine and load_reward")
    return name
