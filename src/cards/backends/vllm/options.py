"""What a vLLM that draws and ends segments by the laws of this package is told with each request.

The options stand in `SamplingParams.extra_args` (over HTTP: `vllm_xargs`) of every request that is to be drawn so:

    cards_seed                  seed of the answer
    cards_segment               number of the segment in it (0)
    cards_temperature           the draw, as in `Sampling` (1); cards_top_k (0: off), cards_top_p (1)
    cards_threshold             the segment ends before a token of this uncertainty; without it, never by uncertainty
    cards_measure               entropy, mcp or evidential (entropy)
    cards_minimum               tokens that the segment has at least (1)
    cards_stop                  id that is given out in place of a token where the segment ends; among the request's
                                `stop_token_ids` it ends the request too

The request's own `seed` is the number of the candidate (vLLM itself adds 1 to it for each further one of `n`); its
`temperature` must be 0, or 1 where `n` is larger, as vLLM wants; penalties would spoil the draw and are refused.

Of a row of logits only one token is left: with the value -1 if it was drawn, with the uncertainty (never negative) if it is the
stop id. So under vLLM's `logprobs_mode="processed_logits"` the log-probability of the token (`logprobs=0`) tells a boundary
and its uncertainty; under any other, `cards_stop` must be an id that the LM never draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from cards.boundaries import Entropy
from cards.engines.ask import Ask
from cards.errors import MismatchError, UnknownNameError, check
from cards.sampling import Sampling, uniforms

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

KEYS = ("seed", "segment", "temperature", "top_k", "top_p", "threshold", "measure", "minimum", "stop")
LARGEST = 2**31  # number of a candidate, segment or token
DRAWN = -1.0  # what is left of the logits for a drawn token


def options_of(ask: Ask, stop: int) -> dict[str, str | int | float]:
    """The options for candidates of an ask; `stop` is given out at a boundary by uncertainty.

    Raises MismatchError if the boundary reads logits in a way of its own.
    """
    sampling, boundary = ask.sampling, ask.boundary
    if boundary.reads_logits and type(boundary) is not Entropy:
        raise MismatchError(
            f"vLLM does not know the boundary {type(boundary).__name__}: use Entropy, or the transformers engine."
        )
    options: dict[str, str | int | float] = {
        "seed": ask.seed % 2**64,  # as `uniforms` takes it, and small enough to be sent
        "segment": ask.segment,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or 0,
        "top_p": sampling.top_p,
    }
    if isinstance(boundary, Entropy):
        options |= {"threshold": boundary.threshold, "measure": boundary.measure, "minimum": boundary.minimum, "stop": stop}
    return {f"cards_{key}": value for key, value in options.items()}


@dataclass(slots=True)
class Rule:
    """How a request is drawn, and how it ends."""

    sampling: Sampling
    boundary: Entropy | None
    stop: int
    stream: tuple[int, int, int]  # seed, segment, candidate
    known: NDArray[np.float64]  # the first of its random numbers

    def uniform(self, drawn: int) -> float:
        """The random number of the next token, in [0, 1)."""
        if drawn >= len(self.known):
            self.known = uniforms(*self.stream, 2 * drawn + 64)
        return float(self.known[drawn])

    @classmethod
    def of(cls, params: SamplingParams) -> Rule | None:
        """The rule that the options of a request say; None where it has none. Raises SettingError."""
        given = {k.removeprefix("cards_"): v for k, v in (params.extra_args or {}).items() if k.startswith("cards_")}
        if not given:
            return None
        for key in given:
            if key not in KEYS:
                raise UnknownNameError("option", f"cards_{key}", (f"cards_{k}" for k in KEYS))
        seed, segment, top_k = (_whole(given, key) for key in ("seed", "segment", "top_k"))
        check("seed" in given, "A request with cards_ options needs cards_seed, the seed of the answer.")
        check(
            params.seed is not None and 0 <= params.seed < LARGEST,
            "A request with cards_ options needs a seed: the number of the candidate, from 0.",
        )
        check(params.temperature in (0, 1), "cards_temperature is what tokens are drawn with: leave vLLM's temperature at 0.")
        check(
            (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0, 0, 1),
            "Penalties cannot be combined with cards_ options.",
        )
        sampling = Sampling(_number(given, "temperature", 1.0), top_k or None, _number(given, "top_p", 1.0))
        boundary, stop = None, 0
        if "threshold" in given:
            measure = given.get("measure", "entropy")
            boundary = Entropy(_whole(given, "minimum", 1), None, _number(given, "threshold", 0.0), measure)
            check("stop" in given, "A request with cards_threshold needs cards_stop, the id that ends the segment.")
            stop = _whole(given, "stop")
        return cls(sampling, boundary, stop, (seed, segment, cast(int, params.seed)), np.zeros(0))


def _whole(given: dict[str, Any], key: str, default: int = 0) -> int:
    value, end = given.get(key, default), 2**64 if key == "seed" else LARGEST
    check(isinstance(value, int) and 0 <= value < end, f"cards_{key} must be a whole number below {end}, not {value!r}.")
    return cast(int, value)


def _number(given: dict[str, Any], key: str, default: float) -> float:
    value = given.get(key, default)
    check(isinstance(value, int | float), f"cards_{key} must be a number, not {value!r}.")
    return float(value)
