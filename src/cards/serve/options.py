"""Options of a server: limits on its clients and the policy for a failing reward."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Literal

from cards.errors import check

OnRewardFailure = Literal["closed", "plain"]
API_KEY = re.compile(r"[!-~]+")  # printable ASCII without spaces, as a header can carry it


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Limits and policies of a server.

    If the reward fails, `closed` fails the request and `plain` returns a response from plain sampling, marked as unaligned.
    """

    name: str | None = None  # model name in the API; None: the engine's name
    api_keys: tuple[str, ...] = ()  # empty: no key is required
    max_running: int | None = None  # concurrent responses; None: the number of cache slots
    max_queue: int = 64  # waiting requests
    max_tokens: int = 1024  # new tokens that a request may ask for
    default_tokens: int = 128  # new tokens if the request sets no limit
    max_prompt_tokens: int | None = None  # None: limited by the context
    max_setting: int = 1024  # integers in a client's settings (candidates, tokens)
    max_body: int = 2**20  # bytes
    deadline: float = 120.0  # seconds from the arrival of a request; clients may ask for less
    read_timeout: float = 30.0  # seconds for the body of a request to arrive
    header_timeout: float = 10.0  # seconds for the head of a request to arrive
    keep_alive: int = 75  # seconds until an idle connection is closed; longer than proxies keep theirs
    max_connections: int = 1000  # at the limit, the connection that has waited longest for a request is closed
    drain: float = 30.0  # seconds for running requests to finish at shutdown
    on_reward_failure: OnRewardFailure = "closed"
    log_prompts: bool = False
    cors: tuple[str, ...] = ()  # origins whose pages may send requests
    playground: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            numeric = isinstance(value, int | float) and not isinstance(value, bool)
            if numeric and field.name != "max_queue":
                check(value > 0, f"{field.name} must be positive, got {value}.")
        check(self.max_queue >= 0, f"max_queue must not be negative, got {self.max_queue}.")
        for name in ("api_keys", "cors"):  # a string would count as a sequence of one-letter keys
            check(not isinstance(getattr(self, name), str), f"{name} must be a list of texts, got one text.")
        check(
            all(isinstance(key, str) and API_KEY.fullmatch(key) for key in self.api_keys),
            "An API key must have one or more printable ASCII characters and no spaces. Use another key.",
        )
