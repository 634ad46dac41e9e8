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

from cards.serve.api_key import ApiKey, named_keys
from cards.serve.errors import ApiError

COOKIE = "cards_session"
MAX_WRONG, WAIT = 10, 60  # different wrong keys that an address can try in this number of seconds
MAX_ADDRESSES = 10_000  # in memory


@dataclass(slots=True)
class Tries:
    """The keys that an address sent, by hash: the names of those that were right, and the times of those that were wrong."""

    right: dict[bytes, str] = field(default_factory=dict)
    wrong: dict[bytes, float] = field(default_factory=dict)


class Keys:
    """The accepted keys. Comparisons take the same time whichever key matches.

    Methods that compare return the name of the key, or None for a wrong one. They raise ApiError (429) if the address has to
    wait. Until then it can use keys that it has used before, because several clients can share an address. A wrong key that
    is sent again counts once, because it is no guess.
    """

    def __init__(self, keys: Sequence[str | ApiKey]) -> None:
        found = named_keys(keys)
        self.names = [key.name for key in found]
        self.keys = [key.secret.encode() for key in found]
        self.sessions = [_session(key) for key in self.keys]
        self.tries: OrderedDict[str, Tries] = OrderedDict()  # by address, the latest last

    def name_of(self, key: str, address: str) -> str | None:
        return self._name_of(self.keys, key, address)

    def name_of_header(self, authorization: str, address: str) -> str | None:
        kind, _, key = authorization.partition(" ")
        return self.name_of(key.strip(), address) if kind.lower() == "bearer" else None

    def name_of_session(self, session: str, address: str) -> str | None:
        return self._name_of(self.sessions, session, address)

    def _name_of(self, known: Sequence[bytes], given: str, address: str) -> str | None:
        if not given:
            return None
        number, digest = _find(known, given), hashlib.sha256(given.encode(errors="replace")).digest()
        tries = self.tries.setdefault(address, Tries())
        self.tries.move_to_end(address)
        if len(self.tries) > MAX_ADDRESSES:
            self.tries.popitem(last=False)
        if digest in tries.right:
            return tries.right[digest]
        now = time.monotonic()
        tries.wrong = {one: then for one, then in tries.wrong.items() if now < then + WAIT}
        if len(tries.wrong) >= MAX_WRONG and digest not in tries.wrong:
            why = "Too many different API keys from this address were wrong. Retry later with a valid key."
            raise ApiError(429, why, code="too_many_keys", retry_after=WAIT)
        if number is None:
            tries.wrong.setdefault(digest, now)
            return None
        tries.right[digest] = self.names[number]
        return self.names[number]

    def session(self, key: str) -> str:
        """Return the value of the cookie, which does not reveal the key and is valid as long as the key."""
        return _session(key.encode()).decode()


def address_of(connection: HTTPConnection) -> str:
    """Return the network address of a client. uvicorn takes it from X-Forwarded-For if a proxy on this machine sends that."""
    return connection.client.host if connection.client else ""


def _session(key: bytes) -> bytes:
    return hmac.new(key, b"session of the CARDS playground", hashlib.sha256).hexdigest().encode()


def _find(known: Sequence[bytes], given: str) -> int | None:
    matches = [hmac.compare_digest(given.encode(errors="replace"), one) for one in known]
    return matches.index(True) if any(matches) else None
