"""The methods that a server offers, and the settings that clients may change."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from cards.boundaries import Boundary, Entropy
from cards.decoder import check_match
from cards.engines.base import Engine
from cards.errors import CardsError, SettingError, UnknownNameError, check
from cards.methods.base import Method, Sampled, target_of
from cards.methods.responses.driver import ResponseMethod
from cards.registry import make_method, method_class, method_classes, split_settings
from cards.rewards.base import Reward
from cards.settings import Setting, settings_of

MAX_TEXT, MAX_SPEC = 64, 512  # characters of a text setting, and of an inner method
MAX_DEPTH = 3  # methods within each other
MAX_RESPONSES = 64  # responses that methods within each other draw


class OfferedMethods:
    """The methods by name: the server's own method with the server's settings, all others with their defaults.

    Only the models of the server's own method are used, and its target reward. Methods that need other models are not offered,
    and clients cannot load models. Methods that cannot run with these settings are not `listed`, but a client can set others.
    """

    def __init__(self, engine: Engine, reward: Reward | None, default: Method, max_integer: int) -> None:
        self.default, self.max_integer = default.name, max_integer
        shared = {
            name: getattr(method, name)
            for method in reversed(default.nest)
            for name, setting in settings_of(method).items()
            if setting.spec.loads or name == "target"
        }
        self.offered = {default.name: default}
        check_match(default, engine, reward)
        for name in method_classes().keys() - self.offered.keys():
            with suppress(CardsError):
                if (method := _with_shared(shared, name)) is not None:
                    check_match(method, engine, reward)
                    self.offered[name] = method
        self.listed = sorted(name for name, method in self.offered.items() if _runs(method, engine, reward))

    def make(self, name: str | None, settings: Mapping[str, Any]) -> Method:
        """Return the method with a client's settings. An inner method is text, or an object like the field `cards`.

        With an inner method, `temperature`, `top_k` and `top_p` are those of the innermost one.
        Raises UnknownNameError or SettingError.
        """
        return self._make(name or self.default, settings, self._from_json, 1)

    def _make(self, name: str, settings: Mapping[str, Any], read: Callable[[str, str, Any], Any], depth: int) -> Method:
        check(depth <= MAX_DEPTH, f"A method can have inner methods at most {MAX_DEPTH - 1} deep on this server.")
        if name not in self.offered:
            hint = "The other methods need models that this server has not loaded." if name in method_classes() else ""
            raise UnknownNameError("method", name, self.offered, hint)
        known = settings_of(method_class(name))
        values = {}
        for key, value in settings.items():
            if key not in known:
                raise UnknownNameError(f"setting of method {name!r}:", key, known)
            spec = known[key].spec
            check(spec.client and not spec.loads, f"{key} is set by the server. Leave it out of the settings.")
            if known[key].nests:
                values[key] = self._inner(key, value, depth + 1)
            else:
                values[key] = self._limited(known[key], read(name, key, value))
        inner = values.get("inner", getattr(self.offered[name], "inner", None))
        if inner is not None and (moved := {key: values.pop(key) for key in settings_of(Sampled) if key in values}):
            values["inner"] = _with_sampling(inner, moved)
        made: Method = replace(self.offered[name], **values)  # type: ignore[type-var]
        counts = [method.n for method in made.nest if isinstance(method, ResponseMethod)]
        check(
            len(counts) < 2 or not values or math.prod(counts) <= MAX_RESPONSES,
            f"The inner methods may draw at most {MAX_RESPONSES} responses on this server, got {' x '.join(map(str, counts))}.",
        )
        return made

    def _inner(self, key: str, value: Any, depth: int) -> Method | None:
        """Return the method of a setting, from text or from an object with `method` and `settings`."""
        if value in (None, "none"):
            return None
        if isinstance(value, str):
            check(len(value) <= MAX_SPEC, f"{key} must have at most {MAX_SPEC} characters, got {len(value)}.")
            return self._make(*split_settings(value), self._from_text, depth)
        keys = value.keys() if isinstance(value, dict) else {""}
        check(
            keys <= {"method", "settings"}
            and isinstance(value.get("method"), str)
            and isinstance(value.get("settings", {}), dict),
            f"{key} must be a method as text, or an object with method and settings, got another {type(value).__name__}.",
        )
        return self._make(value["method"], value.get("settings", {}), self._from_json, depth)

    def _from_text(self, name: str, key: str, text: str) -> Any:
        return settings_of(method_class(name))[key].parse(text)

    def _from_json(self, name: str, key: str, value: Any) -> Any:
        try:
            parsed = _adapter(name, key).validate_json(json.dumps(value))  # strict JSON: true is not 1, a list is a tuple
        except ValidationError as error:
            raise SettingError(f"{key}: {error.errors()[0]['msg']}, got {value!r}.") from error
        if isinstance(parsed, str):
            check(len(parsed) <= MAX_TEXT, f"{key} must have at most {MAX_TEXT} characters, got {len(parsed)}.")
            parsed = settings_of(method_class(name))[key].parse(parsed)
        return parsed

    def _limited(self, setting: Setting, parsed: Any) -> Any:
        """Return the value if clients may set it. Raises SettingError."""
        numbers = parsed if isinstance(parsed, tuple) else (getattr(parsed, "maximum", parsed),)
        highest = max((number for number in numbers if isinstance(number, int)), default=0)
        limit = setting.spec.client_at_most
        limit = self.max_integer if limit is None else min(self.max_integer, limit)
        check(highest <= limit, f"{setting.name} must be at most {limit:g} on this server, got {highest}.")
        return parsed


def _with_sampling(method: Method, values: Mapping[str, Any]) -> Method:
    """Return the method whose innermost method has these values of sampling settings. Raises UnknownNameError."""
    if (inner := getattr(method, "inner", None)) is not None:
        return replace(method, inner=_with_sampling(inner, values))  # type: ignore[type-var]
    known = settings_of(method)
    if missing := values.keys() - known.keys():
        raise UnknownNameError(f"setting of method {method.name!r}:", min(missing), known)
    return replace(method, **values)  # type: ignore[type-var]


def _with_shared(shared: Mapping[str, Any], name: str) -> Method | None:
    """Return the method with the loaded models and the target reward, or None if it needs other models."""
    given = {}
    for key, setting in settings_of(method_class(name)).items():
        if shared.get(key) is not None:
            given[key] = shared[key]
        elif setting.spec.loads and setting.default is not None:
            return None
    return make_method(name, **given)


def _runs(method: Method, engine: Engine, reward: Reward | None) -> bool:
    """Return whether the target reward is known if the method needs one, and the engine supports its boundary and its texts."""
    return all(_runs_alone(one, engine, reward) for one in method.nest)


def _runs_alone(method: Method, engine: Engine, reward: Reward | None) -> bool:
    method = method if reward is None else method.resolved(reward)
    known = settings_of(method)
    boundary = getattr(method, "boundary", None)
    own_target = any(getattr(method, name, None) is not None for name in ("quantile", "gain"))
    try:
        if reward is not None and "target" in known and not own_target:
            target_of(getattr(method, "target", None), reward)
        if boundary is not None or "boundary" in known:
            engine.check_boundary(boundary or Entropy())
        return all(engine.tokenize(text) for text in method.writes)
    except CardsError:
        return False


@cache
def _adapter(name: str, key: str) -> TypeAdapter[Any]:
    """Return a validator for the JSON value of a setting. Boundaries are texts, as on the command line."""
    hint = get_type_hints(method_class(name))[key]
    if Boundary in (hint, *get_args(hint)):
        hint = str if hint is Boundary else str | None
    return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False, strict=True))
