"""The exact cost of each request: engines and rewards add to its usage, in the role in which they are called."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields
from itertools import count
from typing import Literal, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
Role = Literal["lm", "draft", "rm"]  # the language model, a second one that helps it, or a part of a reward


@dataclass(slots=True)
class Usage:
    """Cost of one request, or of several added with `+`. Tokens are counted per row, seconds are wall-clock.

    A forward step shared by several requests counts once for each of them. Tokens drawn but not part of the answer
    are wasted: `lm_wasted_tokens = lm_decoded_tokens + draft_kept_tokens - tokens of the answer`.
    """

    lm_steps: int = 0  # forward steps in which the request had a row
    lm_prefill_tokens: int = 0  # tokens read that this request did not draw in that row
    lm_decoded_tokens: int = 0  # tokens drawn
    lm_wasted_tokens: int = 0  # drawn and not kept
    lm_cached_tokens: int = 0  # prefix tokens found in the cache instead of read again
    draft_steps: int = 0  # the same for the second model of methods that have one
    draft_prefill_tokens: int = 0
    draft_decoded_tokens: int = 0
    draft_kept_tokens: int = 0  # of them, those that became part of the answer without the LM drawing them
    draft_cached_tokens: int = 0
    rm_calls: int = 0  # texts scored
    rm_tokens: int = 0  # tokens the reward model read
    rm_cached_tokens: int = 0
    rounds: int = 0  # times the engine was asked for candidates
    candidates: int = 0  # candidates the method looked at, in order
    accepted: int = 0
    rejected: int = 0
    fallbacks: int = 0  # segments taken untested after too many rejections
    flops: float = 0.0  # 2 x parameters x tokens read, over all models
    lm_seconds: float = 0.0  # in forward steps that served this request
    draft_seconds: float = 0.0
    rm_seconds: float = 0.0
    seconds: float = 0.0  # from request to last event; the rest of it is waiting and bookkeeping

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Usage)})

    def add(self, **amounts: float) -> None:
        """Add amounts to the named fields in place."""
        for name, amount in amounts.items():
            setattr(self, name, getattr(self, name) + amount)

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted over accepted and rejected; None before the first verdict."""
        tested = self.accepted + self.rejected
        return self.accepted / tested if tested else None

    @property
    def fallback_rate(self) -> float | None:
        """Segments taken untested over all segments; None before the first segment."""
        taken = self.accepted + self.fallbacks
        return self.fallbacks / taken if taken else None

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A request being served: its usage, and an id that no other request ever has."""

    usage: Usage
    id: int = field(default_factory=count(1).__next__)


@dataclass(frozen=True, slots=True)
class Account:
    """Where the costs of a call go: to the usage of a request, in the fields of the role that the model is called in."""

    ticket: Ticket
    role: Role

    @property
    def usage(self) -> Usage:
        return self.ticket.usage

    def add(self, **costs: float) -> None:
        """Add costs, named as in Usage but without the role. In a reward only flops and tokens read or cached have a field."""
        if self.role == "rm":
            self.usage.add(**{IN_REWARD[name]: cost for name, cost in costs.items() if name in IN_REWARD})
        else:
            self.usage.add(**{name if name == "flops" else f"{self.role}_{name}": cost for name, cost in costs.items()})


IN_REWARD = {"flops": "flops", "prefill_tokens": "rm_tokens", "cached_tokens": "rm_cached_tokens"}
_ticket: ContextVar[Ticket | None] = ContextVar("cards_ticket", default=None)
_role: ContextVar[Role] = ContextVar("cards_role", default="lm")
_open: set[int] = set()  # ids of the requests being served


@contextmanager
def track_usage(usage: Usage | None = None) -> Iterator[Usage]:
    """Open a ticket: everything awaited inside adds its cost to `usage`, including tasks started inside."""
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
    """Call models in a role. Everything inside a reward belongs to the reward, whatever role is named there."""
    reset = _role.set("rm" if _role.get() == "rm" else role)
    try:
        yield
    finally:
        _role.reset(reset)


async def in_role(role: Role, call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a model in a role, side by side with calls in other roles."""
    with booked_as(role):
        return await call(*args, **kwargs)


def current_account() -> Account:
    """The account of the running request in the current role. Outside a request, the costs go nowhere."""
    return Account(_ticket.get() or Ticket(Usage()), _role.get())


def count_round() -> None:
    """Count a round: a method asks its engines for candidates."""
    current_account().usage.add(rounds=1)


def open_tickets() -> set[int]:
    """The ids of the requests being served."""
    return set(_open)
