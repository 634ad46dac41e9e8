"""Methods with settings in their names: `best-of-n:n=2,4,8` is three of them."""

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
    "A method (repeatable), with settings after a colon: cards:beta=0.5,target=2. "
    "Several values are several runs: best-of-n:n=2,4,8. A comma within a value is written \\,."
)
SETTING = re.compile(r"\s*([a-z][a-z_-]*)=(.*)", re.S)


def arms_of(specs: Iterable[str]) -> list[Arm]:
    """Raises UnknownNameError or SettingError, naming the spec."""
    arms = [arm for spec in specs for arm in _arms(spec)]
    for i, arm in enumerate(arms):
        check(arm.method not in [other.method for other in arms[:i]], f"{arm.label!r} is there twice.")
    return arms


def _arms(spec: str) -> list[Arm]:
    name, _, rest = spec.partition(":")
    name = name.strip()
    try:
        given = _given(name, rest)
        fixed = {key: values[0] for key, values in given.items() if len(values) == 1}
        varied = {key: values for key, values in given.items() if len(values) > 1}
        line = _label(name, fixed)
        arms = []
        for values in product(*varied.values()):
            settings = fixed | dict(zip(varied, values, strict=True))
            arms.append(Arm(method_of(name, settings), _label(name, settings), line))
    except CardsError as error:
        raise SettingError(f"{error} (In the method {spec!r}.)") from error
    return arms


def _given(name: str, rest: str) -> dict[str, list[str]]:
    """`a=1,b=2,3` as {a: [1], b: [2, 3]}."""
    known = settings_of(method_class(name))
    given: dict[str, list[str]] = {}
    key = ""
    for part in re.split(r"(?<!\\),", rest) if rest.strip() else []:
        if found := SETTING.fullmatch(part):
            key, part = found[1].replace("-", "_"), found[2]
            if key not in known:
                raise UnknownNameError(f"setting of method {name!r}:", key, known)
        check(bool(key), f"Settings are written setting=value, not {part!r}.")
        given.setdefault(key, []).append(part.strip().replace("\\,", ","))
    return given


def _label(name: str, settings: dict[str, str]) -> str:
    written = ",".join(f"{key}=" + value.replace(",", "\\,") for key, value in settings.items())
    return f"{name}:{written}" if written else name
