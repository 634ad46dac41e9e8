"""The methods that a server offers on its models, and what its clients may set of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from cards.boundaries import Boundary
from cards.decoder import check_match
from cards.engines.base import Engine
from cards.errors import CardsError, SettingError, UnknownNameError, check
from cards.methods.base import Method
from cards.registry import make_method, method_class, method_classes
from cards.rewards.base import Reward
from cards.settings import settings_of

LONGEST = 64  # characters of a setting that is text


class Methods:
    """By name, with the server's settings for its own method and the defaults for others.

    Models come from the server's method alone: a method that needs others is not offered, and no client can have one loaded.
    """

    def __init__(self, engine: Engine, reward: Reward | None, default: Method, most: int) -> None:
        self.default, self.most = default.name, most
        held = {name: getattr(default, name) for name, own in settings_of(default).items() if own.spec.loads}
        self.offered = {default.name: default}
        check_match(default, engine, reward)
        for name in method_classes().keys() - self.offered.keys():
            with suppress(CardsError):
                if (method := _with(held, name)) is not None:
                    check_match(method, engine, reward)
                    self.offered[name] = method

    def make(self, name: str | None, settings: Mapping[str, Any]) -> Method:
        """The method with a client's settings. Raises UnknownNameError or SettingError."""
        if (name := name or self.default) not in self.offered:
            hint = "The others need models that this server does not have." if name in method_classes() else ""
            raise UnknownNameError("method", name, self.offered, hint)
        known = settings_of(method_class(name))
        values = {}
        for key, value in settings.items():
            if key not in known:
                raise UnknownNameError(f"setting of method {name!r}:", key, known)
            spec = known[key].spec
            check(spec.client and not spec.loads, f"{key} is set by the server, and clients cannot change it.")
            values[key] = self._read(name, key, value)
        return replace(self.offered[name], **values)  # type: ignore[type-var]

    def _read(self, name: str, key: str, value: Any) -> Any:
        try:
            read = _adapter(name, key).validate_python(value)
        except ValidationError as error:
            raise SettingError(f"{key}: {error.errors()[0]['msg']}, not {value!r}.") from error
        if isinstance(read, str):
            check(len(read) <= LONGEST, f"{key} may have {LONGEST} characters.")
            read = settings_of(method_class(name))[key].parse(read)
        numbers = read if isinstance(read, tuple) else (getattr(read, "maximum", read),)
        highest = max((number for number in numbers if isinstance(number, int)), default=0)
        own = settings_of(method_class(name))[key].spec.client_at_most
        most = self.most if own is None else min(self.most, own)
        check(highest <= most, f"{key} must be at most {most:g} on this server, got {highest}.")
        return read


def _with(held: Mapping[str, Any], name: str) -> Method | None:
    """The method on the models that are there, or None if it needs others."""
    given = {}
    for key, own in settings_of(method_class(name)).items():
        if own.spec.loads:
            if held.get(key) is not None:
                given[key] = held[key]
            elif own.default is not None:
                return None
    return make_method(name, **given)


@cache
def _adapter(name: str, key: str) -> TypeAdapter[Any]:
    """Reads what JSON can hold of a setting; boundaries are written as on the command line."""
    hint = get_type_hints(method_class(name))[key]
    if Boundary in (hint, *get_args(hint)):
        hint = str if hint is Boundary else str | None
    return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False))
