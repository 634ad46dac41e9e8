"""Lookup of methods by name: those of this package and of plug-ins (entry points `cards.methods`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, cast

import cards.methods
from cards.engines.base import Engine
from cards.engines.loader import EMBEDDED, is_embedded
from cards.engines.loader import load_engine as load_plain
from cards.engines.mixture import Mixture
from cards.errors import MismatchError, UnknownNameError, check
from cards.methods.base import FAMILIES, Method
from cards.methods.tokens.driver import LogitsMethod
from cards.plugins import is_class, plugins
from cards.rewards.base import Reward
from cards.rewards.loader import load_reward as load_reward
from cards.settings import READERS, settings_of
from cards.specs import nested, split_spec, unquote


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


def has_tests(name: str) -> bool:
    """Return whether the method of this name tests candidates. It does not if the name is unknown."""
    cls = method_classes().get(name)
    return cls is not None and cls.tests


def make_method(name: str, **settings: Any) -> Method:
    """Make a method from its name and settings. A method among them can be text. Raises UnknownNameError or SettingError."""
    cls = method_class(name)
    known = settings_of(cls)
    for key, value in settings.items():
        if key not in known:
            raise UnknownNameError(f"setting of method {name!r}:", key, known)
        if known[key].nests and isinstance(value, str):
            settings[key] = known[key].parse(value)
    return cls(**settings)


def read_method(name: str, texts: Mapping[str, str | None]) -> Method:
    """Make a method from its name and settings as text; None means the default. Raises UnknownNameError or SettingError."""
    known = settings_of(method_class(name))
    given = {key: text for key, text in texts.items() if text is not None}
    return make_method(name, **{key: known[key].parse(text) if key in known else text for key, text in given.items()})


def read_spec(text: str) -> Method:
    """Make a method from `name:setting=value,...`, in parentheses or not. Raises UnknownNameError or SettingError."""
    name, texts = split_settings(text)
    return read_method(name, texts)


def split_settings(text: str) -> tuple[str, dict[str, str]]:
    """Return the name and the settings, as text, of `name:setting=value,...`. Raises UnknownNameError or SettingError."""
    name, values = split_spec(text.strip()[1:-1] if nested(text) else text)
    known = settings_of(method_class(name))
    joined = {key: ",".join(parts) for key, parts in values.items()}
    for key in joined:
        if key not in known:
            raise UnknownNameError(f"setting of method {name!r}:", key, known)
    return name, {key: text if known[key].nests else unquote(text) for key, text in joined.items()}


READERS[Method] = read_spec


def read_mix(text: str) -> Method:
    """Make a method that is the rule of a mixture. Raises UnknownNameError or SettingError."""
    method = read_spec(text)
    names = [name for name, cls in method_classes().items() if issubclass(cls, Mixture)]
    check(isinstance(method, Mixture), f"Method {method.name!r} is not a mixture. Mixtures: {', '.join(names)}.")
    for name in settings_of(LogitsMethod):
        check(
            getattr(method, name) == settings_of(method)[name].default,
            f"{name} is not a setting of the mixture: set it for the method that runs on {method.name!r}.",
        )
    return method


def load_engine(name: str, *, mix: str | Mixture | None = None, **options: Any) -> Engine:
    """Load an LM: `tiny` (embedded), a folder, a Hugging Face name, a GGUF file, `vllm:NAME`, an http(s) address,
    PREFIX:NAME of a plug-in.

    mix: a token-level method that combines the logits of several LMs or prompts, such as
    `"proxy-tuning:tuned=A,untuned=B"`. Every method can then run on the mixture.
    draft: a smaller LM with the same tokenizer, or its name, that drafts `gamma` tokens; `ngram` copies drafts from the text
    (`ngram:N`: after a match of up to N tokens). skip_layers: draft with the model
    itself, without this fraction of its layers. Speculative sampling with either is exact: it does not change the distribution
    of responses. chat_template: a .jinja file, or Jinja text, that renders messages instead of the model's own template.
    options: options of the back end, such as device, dtype, slots, context, trust_remote_code (run Python code
    that comes with the model) and token (of the Hugging Face Hub; by default HF_TOKEN or the login is used).
    `llama` has further ones for the GGUF files among the models, by name.
    A Hugging Face name may have a revision: `NAME@REVISION`.
    Raises UnknownNameError, ModelError, MismatchError or SettingError.
    """
    rule = read_mix(mix) if isinstance(mix, str) else mix
    if isinstance(rule, Method):
        own = {key: value for key, value in options.items() if key not in ("draft", "gamma", "skip_layers", "chat_template")}
        rule = cast(Mixture, with_loaded(rule, partial(load_engine, **own)))
    return load_plain(name, mix=rule, **options)


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
    ready = with_loaded(method, engine_of or load_engine, reward_of or load_reward)
    for one in ready.nest:
        for name, item in settings_of(one).items():
            value = getattr(one, name)
            for engine in value if isinstance(value, tuple) else (value,):
                if isinstance(engine, Engine) and engine.vocabulary != main.vocabulary:
                    raise MismatchError(
                        f"Method {one.name!r} needs models that share a tokenizer, but {engine.name!r} ({name}) and "
                        f"{main.name!r} have different tokenizers. Choose another model with {item.flag}."
                    )
    return ready


def with_loaded(method: Method, engine_of: Callable[[str], Engine], reward_of: Callable[[str], Reward] = load_reward) -> Method:
    """Return the method with the models that its settings name, loaded by these functions."""
    loaded: dict[str, Any] = {}
    for name, setting in settings_of(method).items():
        value = getattr(method, name)
        if isinstance(value, Method):
            loaded[name] = with_loaded(value, engine_of, reward_of)
        if setting.spec.loads is None or value is None:
            continue
        if setting.spec.loads == "reward":
            loaded[name] = reward_of(value) if isinstance(value, str) else value
            continue
        names: Sequence[str | Engine] = (value,)
        if setting.spec.loads == "engines":
            names = value.split(",") if isinstance(value, str) else value
        engines = tuple(engine_of(one) if isinstance(one, str) else one for one in names)
        loaded[name] = engines if setting.spec.loads == "engines" else engines[0]
    return replace(method, **loaded) if loaded else method  # type: ignore[type-var]


def models_of(method: Method) -> list[tuple[str, str, str]]:
    """Return the models that settings of a method and of its inner methods name: the option, the name, `engine` or `reward`."""
    found = []
    for inner in method.nest:
        for name, setting in settings_of(inner).items():
            value, kind = getattr(inner, name), setting.spec.loads
            if kind is not None and isinstance(value, str):
                names = value.split(",") if kind == "engines" else [value]
                found += [(setting.flag, one, "reward" if kind == "reward" else "engine") for one in names]
    return found


def check_defaults(method: Method, model: str) -> None:
    """Raise SettingError if a setting has an embedded reward as its default but the LM `model` is not embedded."""
    for name, setting in settings_of(method).items():
        value = getattr(method, name)
        if isinstance(value, Method):
            check_defaults(value, model)
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
