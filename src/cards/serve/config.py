"""The configuration file of a server: options of the command, entries of models, and API keys, in YAML."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from cards.errors import SettingError, UnknownNameError, check
from cards.profile import located
from cards.serve.api_key import ApiKey
from cards.serve.weights import Bounds
from cards.settings import option_text

T = TypeVar("T")
SECTIONS = ("models", "keys")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """An entry of `models`: the names of a model and a reward as on the command line, a method with settings as text, and the
    names under which clients request it. `weights` are bounds by name, in the order of the parts of the reward."""

    name: str
    model: str | None = None
    reward: str | None = None
    method: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    profile: Path | None = None
    aliases: tuple[str, ...] = ()
    max_tokens: int | None = None
    weights: Bounds = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """A configuration file. `options` are those of `cards serve`, named as parameters (`max_queue`)."""

    path: Path
    options: Mapping[str, Any]
    models: tuple[ModelEntry, ...]
    keys: tuple[ApiKey, ...]

    @classmethod
    def read(cls, path: Path, known: Iterable[str]) -> ServerConfig:
        """Read a configuration file. `known` are the names of options. Raises SettingError, UnknownNameError."""
        content = _mapping(_load(path), f"The configuration file {path}")
        options = {str(name).replace("-", "_"): value for name, value in content.items() if name not in SECTIONS}
        for name in options:
            if name not in (names := set(known)):
                raise UnknownNameError(f"entry of {path}:", name, {*names, *SECTIONS})
        models = [_model(entry, f"models[{i}] in {path}", path) for i, entry in enumerate(_list(content, "models", path))]
        keys = [_key(entry, f"keys[{i}] in {path}") for i, entry in enumerate(_list(content, "keys", path))]
        return cls(path, options, tuple(models), tuple(keys))


def _load(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"The configuration file {path} cannot be read: {error}. Check the path.") from error
    except yaml.YAMLError as error:
        raise SettingError(f"The configuration file {path} is not valid YAML: {' '.join(str(error).split())}.") from error


def _model(entry: Any, where: str, path: Path) -> ModelEntry:
    given = _known(entry, where, ModelEntry)
    for name in ("name", "model", "reward", "method", "profile"):
        if name in given:
            check(isinstance(given[name], str) and bool(given[name]), f"{name} of {where} must be text, got {given[name]!r}.")
    check("name" in given, f"{where} needs a name.")
    settings = _mapping(given.get("settings", {}), f"settings of {where}")
    given["settings"] = {str(key).replace("-", "_"): _text(value) for key, value in settings.items()}
    if "profile" in given:
        given["profile"] = located(given["profile"], path.parent)
    aliases = given.get("aliases", [])
    check(
        isinstance(aliases, list) and all(isinstance(one, str) and one for one in aliases),
        f"aliases of {where} must be a list of names, got {aliases!r}.",
    )
    most = given.get("max_tokens")
    check(most is None or (type(most) is int and most >= 1), f"max_tokens of {where} must be at least 1, got {most!r}.")
    weights = _mapping(given.get("weights", {}), f"weights of {where}")
    return ModelEntry(
        **given | {"aliases": tuple(aliases), "weights": {str(name): _bounds(name, value) for name, value in weights.items()}}
    )


def _key(entry: Any, where: str) -> ApiKey:
    """Return an API key. Its secret is given as `key`, or as `variable`, the name of an environment variable."""
    given = _mapping(entry, where)
    names = ("name", "key", "variable", "running", "requests", "tokens")
    for name in given:
        if name not in names:
            raise UnknownNameError(f"entry of {where}:", name, names)
    check("name" in given, f"{where} needs a name.")
    check(("key" in given) != ("variable" in given), f"{where} needs either key or variable, which names one that has the key.")
    for name in ("running", "requests", "tokens"):
        value = given.get(name)
        check(value is None or type(value) is int, f"{name} of {where} must be a whole number, got {value!r}.")
    variable = given.pop("variable", None)
    secret = given.pop("key", None) if variable is None else os.environ.get(str(variable))
    if not isinstance(secret, str):
        raise SettingError(f"{where} has no key: {f'set {variable}' if variable else 'write it in quotes'}.")
    return ApiKey(secret=secret, **given)


def parse_weight(text: str) -> tuple[str, tuple[float, float]]:
    """Parse NAME=LOW:HIGH. Raises SettingError."""
    name, _, bounds = text.partition("=")
    return name, _bounds(name, bounds.split(":"))


def _bounds(name: Any, value: Any) -> tuple[float, float]:
    try:
        low, high = value
        return float(low), float(high)
    except (TypeError, ValueError) as error:
        raise SettingError(f"The weight {name!r} needs its lowest and its highest value, got {value!r}.") from error


def _text(value: Any) -> str:
    return value if isinstance(value, str) else option_text(tuple(value) if isinstance(value, list) else value)


def _known(entry: Any, where: str, cls: type) -> dict[str, Any]:
    """Return the fields of an entry, without those that are null. Raises UnknownNameError."""
    given = {str(key).replace("-", "_"): value for key, value in _mapping(entry, where).items() if value is not None}
    names = [item.name for item in fields(cls)]
    for name in given:
        if name not in names:
            raise UnknownNameError(f"entry of {where}:", name, names)
    return given


def _mapping(value: Any, where: str) -> dict[Any, Any]:
    check(isinstance(value, dict), f"{where} must be a mapping of names to values, got {type(value).__name__}.")
    return dict(value)


def _list(content: Mapping[Any, Any], name: str, path: Path) -> list[Any]:
    value = content.get(name, [])
    check(isinstance(value, list), f"{name} in {path} must be a list, got {type(value).__name__}.")
    return list(value)
