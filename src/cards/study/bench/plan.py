"""Plans of a bench: models, prompts and methods, read from TOML files or from presets in the package."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from cards.errors import SettingError, UnknownNameError, check
from cards.methods.base import Method
from cards.placement import Placement
from cards.prompts import FORMS
from cards.settings import settings_of

PRESETS = {path.stem: path for path in sorted((Path(__file__).parent / "presets").glob("*.toml"))}


@dataclass(frozen=True, slots=True)
class Arm:
    """A method with settings. `label` is its specification; arms with the same `line` differ only in their budget."""

    method: Method
    label: str
    line: str

    @property
    def settings(self) -> dict[str, Any]:
        """All settings in JSON types, with models entries by name."""
        return {name: _plain(getattr(self.method, name)) for name in settings_of(self.method)}


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan: prompts x methods x budgets x seeds, and the models that run them.

    methods: `name:setting=value,...`; several values of a setting are several budgets.
    prompts: `tiny`, a data set, a file with the rows of a data set (`NAME=FILE`), or a file. `limit` prompts are drawn with
    `sample_seed`.
    form: how a prompt is entries to the model: with its chat template (chat), as `Human:`/`Assistant:` turns (dialogue) or
    unchanged (raw); auto means chat if the model has a template.
    gold: a reward model used only for grading.
    seed: repetition k of prompt number i has the seed `seed + i + 1000000 k`.
    """

    model: str = "tiny"
    reward: str = "tiny"
    gold: str = "none"
    prompts: str = "tiny"
    form: str = "auto"
    methods: tuple[str, ...] = ("vanilla", "best-of-n:n=2,4,8,16", "cards")
    limit: int | None = None
    sample_seed: int = 0
    seeds: int = 1
    seed: int = 0
    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    concurrency: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    slots: int | None = None
    context: int | None = None
    draft: str | None = None
    gamma: int = 4
    skip_layers: float | None = None

    def __post_init__(self) -> None:
        check(len(self.methods) > 0, "A bench needs at least one method.")
        check(self.form in FORMS, f"form must be one of {', '.join(FORMS)}, got {self.form!r}.")
        for name in ("limit", "seeds", "max_tokens", "concurrency"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"{name} must be at least 1, got {value}.")
        for name in ("seed", "sample_seed"):
            check(getattr(self, name) >= 0, f"{name} must be at least 0, got {getattr(self, name)}.")

    @property
    def placement(self) -> Placement:
        """The device, dtype, cache and speculation options of the models."""
        return Placement(**{item.name: getattr(self, item.name) for item in fields(Placement)})


def read(path: Path) -> Plan:
    """Read a plan from a TOML file. Its prompts file may be relative to it. Raises SettingError or UnknownNameError."""
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"The plan {str(path)!r} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise SettingError(f"The plan {str(path)!r} is not TOML: {error}.") from error
    hints = get_type_hints(Plan)
    for name, value in entries.items():
        if name not in hints:
            raise UnknownNameError(f"entry of the plan {str(path)!r}:", name, hints)
        if name in ("methods", "stop"):
            texts = isinstance(value, list) and all(isinstance(text, str) for text in value)
            check(texts, f"{name} in {path} must be a list of texts, got {value!r}.")
            entries[name] = tuple(value)
        else:
            check(isinstance(value, hints[name]), f"{name} in {path} has a value of the wrong type: {value!r}.")
    name, equals, file = entries.get("prompts", "").rpartition("=")
    if (path.parent / file).is_file():
        entries["prompts"] = f"{name}{equals}{path.parent / file}"
    return Plan(**entries)


def preset(name: str) -> Plan:
    """Return a plan of the package by name. Raises UnknownNameError."""
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    return read(PRESETS[name])


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "name", None) or repr(value)
