"""Plans of a bench: models, prompts and methods, read from TOML files or from presets in the package."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from cards.errors import SettingError, UnknownNameError, check
from cards.methods.base import Method
from cards.placement import GOLD, MODEL, REWARD, REWARD_UNSET, Placement
from cards.prompts import FormOptions
from cards.settings import CONCURRENCY, MAX_TOKENS, STOP, option_text, setting, settings_of
from cards.study.datasets import DATASETS

PROMPTS = (
    f"Prompts: tiny, a data set ({', '.join(DATASETS)}), NAME=FILE for a local copy of a data set, or a file: .jsonl, "
    ".json, .csv, .txt with one prompt per line (also .gz), or .parquet."
)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Placement, FormOptions):
    """A plan: prompts x methods x budgets x seeds, and the models that run them.

    methods: `name:setting=value,...`; several values of a setting are several budgets.
    prompts: `tiny`, a data set, a file with the rows of a data set (`NAME=FILE`), or a file. `limit` prompts are drawn with
    `sample_seed`.
    form: how a prompt is given to the model: with its chat template (chat), as `Human:`/`Assistant:` turns (dialogue) or
    unchanged (raw); auto means chat if the model has a template.
    system, chat_template_kwargs: a system message, and variables of the template as JSON (a table in a TOML file).
    seed: repetition k of prompt number i has the seed `seed + i + 1000000 k`.
    """

    methods: tuple[str, ...] = setting(("vanilla", "best-of-n:n=2,4,8,16", "cards"), help="Methods.")
    prompts: str = setting("tiny", help=PROMPTS)
    limit: int | None = setting(None, help="Number of prompts to sample; all if omitted.", at_least=1)
    sample_seed: int = setting(0, help="Random seed for sampling the prompts.", at_least=0)
    seeds: int = setting(1, help="Number of responses per prompt.", at_least=1)
    seed: int = setting(0, help="Random seed of the first prompt.", at_least=0)
    max_tokens: int = setting(128, help=MAX_TOKENS, at_least=1)
    stop: tuple[str, ...] = setting((), help=STOP, escapes=True)
    concurrency: int | None = setting(None, help=CONCURRENCY, at_least=1, unset="the number of slots")
    model: str = setting("tiny", help=MODEL)
    reward: str | None = setting(None, help=REWARD, unset=REWARD_UNSET)
    gold: str = setting("none", help=GOLD)

    def __post_init__(self) -> None:
        FormOptions.__post_init__(self)
        check(len(self.methods) > 0, "A bench needs at least one method.")


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
        if name == "chat_template_kwargs" and isinstance(value, dict):
            entries[name] = json.dumps(value)
        elif name in ("methods", "stop"):
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
    if isinstance(value, Method):
        return option_text(value)
    return getattr(value, "name", None) or repr(value)
