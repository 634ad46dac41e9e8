"""API keys: in the Authorization header, or for the playground in a cookie that its login page sets."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

COOKIE = "cards_session"


class Keys:
    """The accepted keys. Comparisons take the same time whichever key matches."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = [key.encode() for key in keys]
        self.sessions = [_session(key) for key in self.keys]

    def accepts(self, key: str) -> bool:
        return _contains(self.keys, key)

    def accepts_header(self, authorization: str) -> bool:
        kind, _, key = authorization.partition(" ")
        return kind.lower() == "bearer" and self.accepts(key.strip())

    def accepts_session(self, session: str) -> bool:
        return _contains(self.sessions, session)

    def session(self, key: str) -> str:
        """Return the value of the cookie, which does not reveal the key and is valid as long as the key."""
        return _session(key.encode()).decode()


def _session(key: bytes) -> bytes:
    return hmac.new(key, b"session of the CARDS playground", hashlib.sha256).hexdigest().encode()


def _contains(known: Sequence[bytes], given: str) -> bool:
    matches = [hmac.compare_digest(given.encode(errors="replace"), one) for one in known]
    return any(matches)
