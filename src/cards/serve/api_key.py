"""API keys: names, secrets and limits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from cards.errors import check

SECRET = re.compile(r"[!-~]+")  # printable ASCII without spaces, as a header can carry it
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
ANYONE = "anyone"  # the name of all clients together on a server without keys


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key: its public name, which metrics and logs show, its secret, and its limits (None: those of the server).

    Raises SettingError.
    """

    name: str
    secret: str = field(repr=False)
    running: int | None = None
    requests: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        check(
            isinstance(self.secret, str) and SECRET.fullmatch(self.secret) is not None,
            "An API key must have one or more printable ASCII characters and no spaces. Use another key.",
        )
        check(
            isinstance(self.name, str) and NAME.fullmatch(self.name) is not None and self.name != self.secret,
            "The name of an API key must have letters, digits, `_`, `.` or `-`, at most 64, and differ from the key.",
        )
        for name in ("running", "requests", "tokens"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"{name} of the API key {self.name!r} must be at least 1, got {value}.")


def named_keys(keys: Sequence[str | ApiKey]) -> list[ApiKey]:
    """Return keys with names: `key-1` for the first one if it has none. Raises SettingError."""
    found = [key if isinstance(key, ApiKey) else ApiKey(name=f"key-{i}", secret=key) for i, key in enumerate(keys, 1)]
    for attribute in ("name", "secret"):
        values = [getattr(key, attribute) for key in found]
        twice = next((key.name for key in found if values.count(getattr(key, attribute)) > 1), None)
        check(twice is None, f"Each API key must have its own {attribute}: {twice!r} has that of another key.")
    return found
