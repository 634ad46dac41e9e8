"""Lookup of methods by name: those of this package and of plug-ins (entry points `cards.methods`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, cast

import cards.methods
from cards.engines.base import Engine
from cards.engines.loader import EMBEDDED, is_embedded
from cards.engines.loader import load_engine as load_engine
from cards.errors import MismatchError, UnknownNameError, check
from cards.methods.base import FAMILIES, Method
from cards.plugins import is_class, plugins
from cards.rewards.base import Reward
from cards.rewards.loader import load_reward as load_reward
from cards.settings import settings_of


@cache
def method_classes() -> dict[str, type[Method]]:
    """Return all methods by name, grouped by family."""
    builtin = {cls.name: cls for cls in vars(cards.methods).values() if is_class(cls, Method)}
    classes = builtin | plugins("cards.methods", _method_name, builtin)
    families = [*FAMILIES, *(cls.family for cls in classes.values())]
    return dict(sorted(classes.items(), key=lambda item: families.index(item[1].family)))


def method_class(name: str) -> type[Method]:
    """Return the class of a method. Raises UnknownNameError."""
    if name not in method_classes():
        raise UnknownNameError("method", name, method_classes())
    return method_classes()[name]


def make_method(name: str, **settings: Any) -> Method:
    """Make a method from its name and settings. Raises UnknownNameError or SettingError."""
    cls = method_class(name)
    known = settings_of(cls)
    for key in settings:
        if key not in known:
            raise UnknownNameError(f"setting of method {name!r}:", key, known)
    return cls(**settings)


def read_method(name: str, texts: Mapping[str, str | None]) -> Method:
    """Make a method from its name and settings as text; None means the default. Raises UnknownNameError or SettingError."""
    known = settings_of(method_class(name))
    given = {key: text for key, text in texts.items() if text is not None}
    return make_method(name, **{key: known[key].parse(text) if key in known else text for key, text in given.items()})


def with_models(
    method: Method,
    main: Engine,
    engine_of: Callable[[str], Engine] | None = None,
    reward_of: Callable[[str], Reward] | None = None,
) -> Method:
    """Return the method with the models that its settings name, loaded.

    `engine_of` and `reward_of` load a model by name; the defaults are `load_engine` and `load_reward`.
    Raises MismatchError if an engine does not share the tokenizer of `main`, the engine that responds, and SettingError if
    the default of a setting is an embedded reward but `main` is not embedded.
    """
    check_defaults(method, main.name)
    engine_of, reward_of = engine_of or load_engine, reward_of or load_reward
    loaded: dict[str, Any] = {}
    for name, setting in settings_of(method).items():
        value = getattr(method, name)
        if setting.spec.loads is None or value is None:
            continue
        if setting.spec.loads == "reward":
            loaded[name] = reward_of(value) if isinstance(value, str) else value
            continue
        names: Sequence[str | Engine] = (value,)
        if setting.spec.loads == "engines":
            names = value.split(",") if isinstance(value, str) else value
        engines = tuple(engine_of(one) if isinstance(one, str) else one for one in names)
        for engine in engines:
            if engine.vocabulary != main.vocabulary:
                raise MismatchError(
                    f"Method {method.name!r} needs models that share a tokenizer, but {engine.name!r} ({name}) and "
                    f"{main.name!r} have different tokenizers. Choose another model with {setting.flag}."
                )
        loaded[name] = engines if setting.spec.loads == "engines" else engines[0]
    return replace(method, **loaded) if loaded else method  # type: ignore[type-var]


def models_of(method: Method) -> list[tuple[str, str, str]]:
    """Return the models that settings of a method name: the option of each, its name, and `engine` or `reward`."""
    found = []
    for name, setting in settings_of(method).items():
        value, kind = getattr(method, name), setting.spec.loads
        if kind is not None and isinstance(value, str):
            names = value.split(",") if kind == "engines" else [value]
            found += [(setting.flag, one, "reward" if kind == "reward" else "engine") for one in names]
    return found


def check_defaults(method: Method, model: str) -> None:
    """Raise SettingError if a setting has an embedded reward as its default but the LM `model` is not embedded."""
    for name, setting in settings_of(method).items():
        value = getattr(method, name)
        defaulted = setting.spec.loads == "reward" and isinstance(value, str) and value == setting.default
        check(
            is_embedded(model) or not (defaulted and EMBEDDED.intersection(re.split("[:,]", value))),
            f"{name} of method {method.name!r} is {value!r} by default, which is only for the embedded models. Choose one for "
            f"{model!r} with {setting.flag}.",
        )


def _method_name(name: str, cls: Any) -> str:
    if not is_class(cls, Method):
        raise MismatchError("it is not a subclass of cards.Method")
    settings_of(cls)  # raises TypeError for fields that `setting` does not declare
    missing = [attribute for attribute in ("name", "family", "summary") if not hasattr(cls, attribute)]
    if missing:
        raise MismatchError(f"its class lacks {', '.join(missing)}")
    return cast(str, cls.name)
