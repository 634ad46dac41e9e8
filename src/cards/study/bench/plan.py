"""What a bench is asked to do: models, prompts, methods. Written in TOML; some plans come with the package."""

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
    """A method with settings. `label` is how one writes it; arms of one `line` differ in the settings that vary along it."""

    method: Method
    label: str
    line: str

    @property
    def settings(self) -> dict[str, Any]:
        """All settings, ready for JSON; models by their names."""
        return {name: _plain(getattr(self.method, name)) for name in settings_of(self.method)}


@dataclass(frozen=True, slots=True)
class Plan:
    """prompts x methods x budgets x seeds, and the models that they run on.

    methods: `name:setting=value,...`, several values of a setting being several budgets. prompts: `tiny`, a data set by its
    name, one in a file (`NAME=FILE`), or a file; `limit` of them are drawn with `sample_seed`. form: how a prompt reaches the
    model: its chat template (chat), `Human:`/`Assistant:` turns (dialogue), or as it stands (raw); auto is chat if it has one.
    gold: a reward model that only grades.
    Prompt number i, repetition k has the seed `seed + i + 1000000 k`.
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
        check(self.form in FORMS, f"form must be one of {', '.join(FORMS)}, not {self.form!r}.")
        for name in ("limit", "seeds", "max_tokens", "concurrency"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"{name} must be at least 1, not {value}.")
        for name in ("seed", "sample_seed"):
            check(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}.")

    @property
    def placement(self) -> Placement:
        """Where models run, and what writes ahead for the LM."""
        return Placement(**{item.name: getattr(self, item.name) for item in fields(Placement)})


def read(path: Path) -> Plan:
    """The plan in a TOML file; a file of prompts is looked for beside it. Raises SettingError or UnknownNameError."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"The plan {str(path)!r} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise SettingError(f"The plan {str(path)!r} is no TOML: {error}.") from error
    hints = get_type_hints(Plan)
    for name, value in given.items():
        if name not in hints:
            raise UnknownNameError(f"entry of the plan {str(path)!r}:", name, hints)
        if name in ("methods", "stop"):
            texts = isinstance(value, list) and all(isinstance(text, str) for text in value)
            check(texts, f"{name} in {path} must be a list of texts.")
            given[name] = tuple(value)
        else:
            check(isinstance(value, hints[name]), f"{name} in {path} cannot be {value!r}.")
    name, equals, file = given.get("prompts", "").rpartition("=")
    if (path.parent / file).is_file():
        given["prompts"] = f"{name}{equals}{path.parent / file}"
    return Plan(**given)


def preset(name: str) -> Plan:
    """A plan that comes with the package. Raises UnknownNameError."""
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    return read(PRESETS[name])


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "name", None) or repr(value)
