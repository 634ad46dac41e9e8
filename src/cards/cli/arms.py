"""Parse method specifications: `best-of-n:n=2,4,8` stands for three methods."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from cards.cli.settings import method_of
from cards.errors import CardsError, SettingError, UnknownNameError, check
from cards.registry import method_class
from cards.settings import settings_of
from cards.specs import join_spec, quote, split_spec, unquote
from cards.study.bench.plan import Arm

METHOD_HELP = (
    "Method with optional settings (repeatable): cards:beta=0.5,target=2. "
    "Several values give several runs: best-of-n:n=2,4,8. Write a comma within a value as \\,. "
    "A value that is a method stands in parentheses: best-of-n:n=4,inner=(cards:target=2)."
)


def arms_of(specs: Iterable[str]) -> list[Arm]:
    """Return the methods of the specifications. Raises UnknownNameError or SettingError, naming the specification."""
    arms = [arm for spec in specs for arm in _parse(spec)]
    for i, arm in enumerate(arms):
        check(
            arm.method not in [other.method for other in arms[:i]], f"Method {arm.label!r} is given twice: remove one of them."
        )
    return arms


def _parse(spec: str) -> list[Arm]:
    try:
        name, parsed = _parse_settings(spec)
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


def _parse_settings(spec: str) -> tuple[str, dict[str, list[str]]]:
    """Parse `name:a=1,b=2,3` into name, {a: [1], b: [2, 3]}."""
    name, values = split_spec(spec)
    known = settings_of(method_class(name))
    for key in values:
        if key not in known:
            raise UnknownNameError(f"setting of method {name!r}:", key, known)
    return name, {key: [t if known[key].nests else unquote(t) for t in texts] for key, texts in values.items()}


def _label(name: str, settings: dict[str, str]) -> str:
    known = settings_of(method_class(name))
    return join_spec(name, {key: text if known[key].nests else quote(text) for key, text in settings.items()})
