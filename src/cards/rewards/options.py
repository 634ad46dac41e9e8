"""Options in the name of a reward: `NAME?output=toxic&form=plain`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints
from urllib.parse import parse_qsl, quote

from cards.errors import SettingError, UnknownNameError, check
from cards.settings import NUMBERS, READERS, kinds_of, metavar

Texts = dict[str, str | tuple[str, ...]]
START = re.compile(r"\?(?=\w+(?:=|$))")  # the paths of files may have a question mark
REPEATED = tuple[str, ...]  # the type of options that can be given several times
MODEL_OPTIONS: Mapping[str, tuple[Any, ...]] = {"output": (int, NUMBERS, str), "form": (str,), "target": (float,)}


def split_options(name: str) -> tuple[str, Texts]:
    """Return a name without its options, and the options as text. Repeated ones have several texts. Raises SettingError."""
    mark = START.search(name)
    if mark is None or Path(name).exists():
        return name, {}
    base, query = name[: mark.start()], name[mark.end() :]
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
    except ValueError as error:
        raise SettingError(f"The options of a reward are written NAME?option=value&option=value, got {name!r}.") from error
    texts: Texts = {}
    for key, value in pairs:
        before = texts.get(key, ())
        texts[key] = (*((before,) if isinstance(before, str) else before), value) if before else value
    return base, texts


def joined(name: str, texts: Texts) -> str:
    """Return the name with these options: the inverse of `split_options`."""
    pairs = [(key, one) for key, value in texts.items() for one in ((value,) if isinstance(value, str) else value)]
    return name + "?" * bool(pairs) + "&".join(f"{quote(key)}={quote(value)}" for key, value in pairs)


def options_of(*functions: Callable[..., Any]) -> dict[str, tuple[Any, ...]]:
    """Return the types of the keyword-only parameters, except `name`, that can be given as text."""
    found: dict[str, tuple[Any, ...]] = {}
    for function in functions:
        hints = get_type_hints(function)
        for key, item in inspect.signature(function).parameters.items():
            if item.kind is item.KEYWORD_ONLY and key != "name" and (kinds := kinds_of(hints[key])):
                found[key] = (*kinds, REPEATED) if REPEATED in get_args(hints[key]) else kinds
    return found


def read_options(texts: Texts, known: Mapping[str, tuple[Any, ...]], name: str) -> dict[str, Any]:
    """Return options parsed from text. `known` has their types. Raises UnknownNameError or SettingError."""
    for key in texts:
        check(bool(known), f"Reward {name!r} takes no options, got {key!r}.")
        if key not in known:
            raise UnknownNameError(f"option of reward {name!r}:", key, known)
    return {key: _read(key, value, known[key]) for key, value in texts.items()}


def _read(key: str, text: str | tuple[str, ...], kinds: tuple[Any, ...]) -> Any:
    if isinstance(text, tuple):
        check(REPEATED in kinds, f"{key} is given {len(text)} times in the name of the reward. Give it once.")
        return text
    if text in kinds:
        return text
    if bool in kinds and text in ("yes", "no"):
        return text == "yes"
    for kind, read in READERS.items():
        if kind in kinds:
            try:
                return read(text)
            except ValueError:
                continue
    raise SettingError(f"{key} must be {metavar(kinds)}, got {text!r}.")
