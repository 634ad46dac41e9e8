"""API keys: in the Authorization header, or for the playground in a cookie that its login page sets.

An address that tried several wrong keys has to wait before it can try others.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection

from cards.serve.errors import ApiError

COOKIE = "cards_session"
MAX_WRONG, WAIT = 10, 60  # different wrong keys that an address can try in this number of seconds
MAX_ADDRESSES = 10_000  # in memory


@dataclass(slots=True)
class Tries:
    """The keys that an address sent, by hash: those that were right, and the times of those that were wrong."""

    right: set[bytes] = field(default_factory=set)
    wrong: dict[bytes, float] = field(default_factory=dict)


class Keys:
    """The accepted keys. Comparisons take the same time whichever key matches.

    Methods that compare raise ApiError (429) if the address has to wait. Until then it can use keys that it has used before,
    because several clients can share an address. A wrong key that is sent again counts once, because it is no guess.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = [key.encode() for key in keys]
        self.sessions = [_session(key) for key in self.keys]
        self.tries: OrderedDict[str, Tries] = OrderedDict()  # by address, the latest last

    def accepts(self, key: str, address: str) -> bool:
        return self._accepts(self.keys, key, address)

    def accepts_header(self, authorization: str, address: str) -> bool:
        kind, _, key = authorization.partition(" ")
        return kind.lower() == "bearer" and self.accepts(key.strip(), address)

    def accepts_session(self, session: str, address: str) -> bool:
        return self._accepts(self.sessions, session, address)

    def _accepts(self, known: Sequence[bytes], given: str, address: str) -> bool:
        if not given:
            return False
        matches, name = _contains(known, given), hashlib.sha256(given.encode(errors="replace")).digest()
        tries = self.tries.setdefault(address, Tries())
        self.tries.move_to_end(address)
        if len(self.tries) > MAX_ADDRESSES:
            self.tries.popitem(last=False)
        if name in tries.right:
            return True
        now = time.monotonic()
        tries.wrong = {one: then for one, then in tries.wrong.items() if now < then + WAIT}
        if len(tries.wrong) >= MAX_WRONG and name not in tries.wrong:
            why = "Too many different API keys from this address were wrong. Retry later with a valid key."
            raise ApiError(429, why, code="too_many_keys", retry_after=WAIT)
        if matches:
            tries.right.add(name)
        else:
            tries.wrong.setdefault(name, now)
        return matches

    def session(self, key: str) -> str:
        """Return the value of the cookie, which does not reveal the key and is valid as long as the key."""
        return _session(key.encode()).decode()


def address_of(connection: HTTPConnection) -> str:
    """Return the network address of a client. uvicorn takes it from X-Forwarded-For if a proxy on this machine sends that."""
    return connection.client.host if connection.client else ""


def _session(key: bytes) -> bytes:
    return hmac.new(key, b"session of the CARDS playground", hashlib.sha256).hexdigest().encode()


def _contains(known: Sequence[bytes], given: str) -> bool:
    matches = [hmac.compare_digest(given.encode(errors="replace"), one) for one in known]
    return any(matches)
