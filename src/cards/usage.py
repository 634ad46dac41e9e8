"""Usage: the exact cost of each request. Engines and rewards add to it in the role in which they are called."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields
from itertools import count
from typing import Literal, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
Role = Literal["lm", "draft", "rm"]  # target model, draft model, or part of a reward


@dataclass(slots=True)
class Usage:
    """The cost of one request, or of several requests added with `+`. Seconds are wall-clock time.

    Tokens are counted for each sequence. A forward step shared by several requests counts once for each of them.
    Wasted tokens were drawn but are not part of the response:
    `lm_wasted_tokens = lm_decoded_tokens + draft_kept_tokens - tokens of the response`.
    """

    lm_steps: int = 0  # forward steps that included a sequence of this request
    lm_prefill_tokens: int = 0  # tokens read that were not drawn in the same sequence
    lm_decoded_tokens: int = 0  # tokens drawn
    lm_wasted_tokens: int = 0  # tokens drawn that are not part of the response
    lm_cached_tokens: int = 0  # prefix tokens found in the cache
    draft_steps: int = 0  # the same for the draft model
    draft_prefill_tokens: int = 0
    draft_decoded_tokens: int = 0
    draft_kept_tokens: int = 0  # drafted tokens that became part of the response
    draft_cached_tokens: int = 0
    rm_calls: int = 0  # texts scored
    rm_tokens: int = 0  # tokens that the reward model read
    rm_cached_tokens: int = 0
    rounds: int = 0  # times that the method asked its engines for candidates
    candidates: int = 0  # candidates that the method considered
    accepted: int = 0
    rejected: int = 0
    fallbacks: int = 0  # segments used without passing the test, after too many rejections
    flops: float = 0.0  # 2 x parameters x tokens read, summed over all models
    lm_seconds: float = 0.0  # time in forward steps that served this request
    draft_seconds: float = 0.0
    rm_seconds: float = 0.0
    seconds: float = 0.0  # from the request to its last event, including waiting

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Usage)})

    def add(self, **amounts: float) -> None:
        """Add amounts to the named fields, in place."""
        for name, amount in amounts.items():
            setattr(self, name, getattr(self, name) + amount)

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted candidates as a fraction of accepted and rejected ones; None before the first verdict."""
        tested = self.accepted + self.rejected
        return self.accepted / tested if tested else None

    @property
    def fallback_rate(self) -> float | None:
        """Fallbacks as a fraction of all segments; None before the first segment."""
        segments = self.accepted + self.fallbacks
        return self.fallbacks / segments if segments else None

    def to_dict(self) -> dict[str, float]:
        """Return the fields as a JSON-ready dict."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A request in progress: its usage, and an id that is unique in this process."""

    usage: Usage
    id: int = field(default_factory=count(1).__next__)


@dataclass(frozen=True, slots=True)
class Account:
    """The destination of a call's cost: the usage of a request, and the role in which the model is called."""

    ticket: Ticket
    role: Role

    @property
    def usage(self) -> Usage:
        return self.ticket.usage

    def add(self, **costs: float) -> None:
        """Add costs, named as in Usage without the role. For a reward, only FLOPs and tokens read or cached are counted."""
        if self.role == "rm":
            self.usage.add(**{IN_REWARD[name]: cost for name, cost in costs.items() if name in IN_REWARD})
        else:
            self.usage.add(**{name if name == "flops" else f"{self.role}_{name}": cost for name, cost in costs.items()})


IN_REWARD = {"flops": "flops", "prefill_tokens": "rm_tokens", "cached_tokens": "rm_cached_tokens"}
_ticket: ContextVar[Ticket | None] = ContextVar("cards_ticket", default=None)
_role: ContextVar[Role] = ContextVar("cards_role", default="lm")
_open: set[int] = set()  # ids of the requests in progress


@contextmanager
def track_usage(usage: Usage | None = None) -> Iterator[Usage]:
    """Open a ticket: calls inside the block, and in tasks started there, add their cost to `usage`."""
    ticket = Ticket(usage or Usage())
    reset_ticket, reset_role = _ticket.set(ticket), _role.set("lm")
    _open.add(ticket.id)
    try:
        yield ticket.usage
    finally:
        _open.discard(ticket.id)
        _role.reset(reset_role)
        _ticket.reset(reset_ticket)


@contextmanager
def booked_as(role: Role) -> Iterator[None]:
    """Count the cost of calls inside the block in a role. Inside a reward, the role is always `rm`."""
    reset = _role.set("rm" if _role.get() == "rm" else role)
    try:
        yield
    finally:
        _role.reset(reset)


async def in_role(role: Role, call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Await a call in a role. Concurrent calls can have other roles."""
    with booked_as(role):
        return await call(*args, **kwargs)


def current_account() -> Account:
    """Return the account of the current request and role. Outside a request, costs are discarded."""
    return Account(_ticket.get() or Ticket(Usage()), _role.get())


def count_round() -> None:
    """Count a round, in which a method asks its engines for candidates."""
    current_account().usage.add(rounds=1)


def open_tickets() -> set[int]:
    """Return the ids of the requests in progress."""
    return set(_open)
