"""Parse method specifications: `best-of-n:n=2,4,8` stands for three methods."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import product

from cards.cli.settings import method_of
from cards.errors import CardsError, SettingError, UnknownNameError, check
from cards.registry import method_class
from cards.settings import settings_of
from cards.study.bench.plan import Arm

METHOD_HELP = (
    "Method with optional settings (repeatable): cards:beta=0.5,target=2. "
    "Several values give several runs: best-of-n:n=2,4,8. Write a comma within a value as \\,."
)
SETTING = re.compile(r"\s*([a-z][a-z_-]*)=(.*)", re.S)


def arms_of(specs: Iterable[str]) -> list[Arm]:
    """Return the methods of the specifications. Raises UnknownNameError or SettingError, naming the specification."""
    arms = [arm for spec in specs for arm in _parse(spec)]
    for i, arm in enumerate(arms):
        check(
            arm.method not in [other.method for other in arms[:i]], f"Method {arm.label!r} is given twice: remove one of them."
        )
    return arms


def _parse(spec: str) -> list[Arm]:
    name, _, rest = spec.partition(":")
    name = name.strip()
    try:
        parsed = _parse_settings(name, rest)
        fixed = {key: values[0] for key, values in parsed.items() if len(values) == 1}
        varied = {key: values for key, values in parsed.items() if len(values) > 1}
        line = _label(name, fixed)
        arms = []
        for values in product(*varied.values()):
            settings = fixed | dict(zip(varied, values, strict=True))
            arms.append(Arm(method_of(name, settings), _label(name, settings), line))
    except CardsError as error:
        raise SettingError(f"{error} (In the method {spec!r}.)") from error
    return arms


def _parse_settings(name: str, rest: str) -> dict[str, list[str]]:
    """Parse `a=1,b=2,3` into {a: [1], b: [2, 3]}."""
    known = settings_of(method_class(name))
    parsed: dict[str, list[str]] = {}
    key = ""
    for part in re.split(r"(?<!\\),", rest) if rest.strip() else []:
        if found := SETTING.fullmatch(part):
            key, part = found[1].replace("-", "_"), found[2]
            if key not in known:
                raise UnknownNameError(f"setting of method {name!r}:", key, known)
        check(bool(key), f"A setting must have the form setting=value, got {part!r}.")
        parsed.setdefault(key, []).append(part.strip().replace("\\,", ","))
    return parsed


def _label(name: str, settings: dict[str, str]) -> str:
    text = ",".join(f"{key}=" + value.replace(",", "\\,") for key, value in settings.items())
    return f"{name}:{text}" if text else name
