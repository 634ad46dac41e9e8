"""The Ask: a request of a method to an engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from cards.boundaries import Boundary, Whole
from cards.errors import check
from cards.events import Prompt, Response
from cards.sampling import Sampling
from cards.shaping import NO_SHAPING, Shaping


@dataclass(frozen=True, slots=True)
class Ask:
    """A request for the candidates `first` .. `first + n - 1` of segment number `segment`, after prompt + response.

    The text of a candidate depends only on (prompt, response, boundary, sampling, shaping, seed, segment, number of the
    candidate). A candidate ends the response if it reaches `max_tokens`, contains one of the `stop` strings, or completes the
    grammar of `shaping`. Raises SettingError.
    """

    prompt: Prompt
    response: Response
    max_tokens: int
    boundary: Boundary = field(default_factory=Whole)
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    segment: int = 0
    first: int = 0
    n: int = 1
    stop: tuple[str, ...] = ()
    shaping: Shaping = NO_SHAPING

    def __post_init__(self) -> None:
        check(self.max_tokens >= 1, f"max_tokens must be at least 1, got {self.max_tokens}.")
        check(self.n >= 1, f"n must be at least 1 candidate, got {self.n}.")
