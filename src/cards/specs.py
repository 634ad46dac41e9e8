r"""Methods as text: `name:setting=value,...`. Methods among the values stand in parentheses; `\,` is a comma within a value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from cards.errors import check

OPENING = re.compile(r"\s*(?:[a-z][a-z_-]*=)?\s*\(")
COMMA = re.compile(r"(?<!\\),")
SETTING = re.compile(r"\s*([a-z][a-z_-]*)=(.*)", re.S)


def split_spec(text: str) -> tuple[str, dict[str, list[str]]]:
    """Return the name and the values of each setting, as written: `a:x=1,y=2,3` gives a, {x: [1], y: [2, 3]}.

    Raises SettingError.
    """
    name, _, rest = text.partition(":")
    values: dict[str, list[str]] = {}
    key = ""
    for part in _parts(rest) if rest.strip() else ():
        if found := SETTING.fullmatch(part):
            key, part = found[1].replace("-", "_"), found[2]
        check(bool(key), f"A setting must have the form setting=value, got {part!r}.")
        values.setdefault(key, []).append(part.strip())
    return name.strip(), values


def join_spec(name: str, values: Mapping[str, str]) -> str:
    """Return the text of a name and settings. Texts that are not methods must be quoted."""
    return ":".join(filter(None, (name, ",".join(f"{key}={value}" for key, value in values.items()))))


def quote(text: str) -> str:
    """Return a value that is not a method, as it is written in a specification."""
    return text.replace(",", "\\,")


def unquote(text: str) -> str:
    """Return the value that stands for `text` in a specification."""
    return text.replace("\\,", ",")


def nested(text: str) -> bool:
    """Return whether the whole text stands in parentheses."""
    text = text.strip()
    return text.startswith("(") and _closing(text, 0) == len(text)


def _parts(text: str) -> Iterator[str]:
    """Yield the parts between commas, except those within parentheses that begin a value."""
    start = 0
    while True:
        opened = OPENING.match(text, start)
        at = (_closing(text, opened.end() - 1) if opened else None) or start
        comma = COMMA.search(text, at)
        yield text[start : comma.start() if comma else None]
        if comma is None:
            return
        start = comma.end()


def _closing(text: str, at: int) -> int | None:
    r"""Return the position after the parenthesis that closes the one at `at`, or None. `\(` and `\)` do not count."""
    depth = 0
    for found in re.finditer(r"\\.|[()]", text[at:], re.S):
        depth += {"(": 1, ")": -1}.get(found[0], 0)
        if depth == 0:
            return at + found.end()
    return None
