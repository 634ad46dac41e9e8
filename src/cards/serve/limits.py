"""Limits of API keys: requests in progress, requests per minute and tokens per minute."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from cards.errors import check
from cards.serve.errors import ApiError

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


class Bucket:
    """A token bucket: `capacity` per minute, refilled continuously. Its level can fall below 0, for costs known later."""

    def __init__(self, capacity: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.capacity, self.clock = capacity, clock
        self._level, self._changed = float(capacity), clock()

    @property
    def level(self) -> float:
        return min(self.capacity, self._level + (self.clock() - self._changed) * self.capacity / 60)

    def wait(self, amount: float) -> float:
        """Return the seconds until the bucket has the amount, or is full if the amount is more than it can hold."""
        return max(0.0, min(amount, self.capacity) - self.level) * 60 / self.capacity

    def take(self, amount: float) -> None:
        self._level, self._changed = self.level - amount, self.clock()


class Meter:
    """The use of one key."""

    def __init__(self, running: int | None, requests: int | None, tokens: int | None) -> None:
        self.most, self.running = running, 0
        self.requests = None if requests is None else Bucket(requests)
        self.tokens = None if tokens is None else Bucket(tokens)

    def enter(self, tokens: int) -> None:
        """Count a request that may use this number of tokens. Raises ApiError (429) if a limit of the key is reached."""
        if self.most is not None and self.running >= self.most:
            raise _limited(f"{self.most} requests at a time", "key_running", 1)
        for bucket, amount, unit in ((self.requests, 1, "requests"), (self.tokens, tokens, "tokens")):
            if bucket is not None and (seconds := bucket.wait(amount)) > 0:
                raise _limited(f"{bucket.capacity} {unit} per minute", f"key_{unit}", math.ceil(seconds))
        self.running += 1
        for bucket, amount in ((self.requests, 1), (self.tokens, tokens)):
            if bucket is not None:
                bucket.take(amount)

    def leave(self, unused: int) -> None:
        """End a request. `unused` is the number of tokens that it did not use; negative if it used more."""
        self.running -= 1
        if self.tokens is not None:
            self.tokens.take(-unused)


class Meters:
    """The meters of all keys by name. Limits that a key does not have are those of the server."""

    def __init__(
        self, keys: Sequence[ApiKey], running: int | None = None, requests: int | None = None, tokens: int | None = None
    ) -> None:
        def of(key: ApiKey | None) -> Meter:
            own = (None, None, None) if key is None else (key.running, key.requests, key.tokens)
            defaults = running, requests, tokens
            return Meter(*(default if value is None else value for value, default in zip(own, defaults, strict=True)))

        self.meters = {key.name: of(key) for key in keys} or {ANYONE: of(None)}

    @contextmanager
    def request(self, key: str, tokens: int, used: Callable[[], int]) -> Iterator[None]:
        """Count a request of a key. `tokens` are reserved for it; at its end, those of `used` count instead.

        Raises ApiError (429) if a limit of the key is reached.
        """
        meter = self.meters[key]
        meter.enter(tokens)
        try:
            yield
        finally:
            meter.leave(tokens - used())


def _limited(what: str, code: str, seconds: int) -> ApiError:
    why = f"This API key may have {what}. Retry in {seconds} s."
    return ApiError(429, why, code=code, retry_after=seconds)
