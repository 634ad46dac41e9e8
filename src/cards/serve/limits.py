"""Limits of API keys: requests in progress, requests per minute and tokens per minute."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from cards.serve.api_key import ANYONE, ApiKey
from cards.serve.errors import ApiError


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
