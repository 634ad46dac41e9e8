"""Request options for the logits processor of this package in vLLM.

The options are fields of `SamplingParams.extra_args` (over HTTP: `vllm_xargs`). Defaults are in parentheses.

    cards_seed                  seed of the response (required)
    cards_segment               index of the segment in the response (0)
    cards_temperature           as in `Sampling` (1)
    cards_top_k, cards_top_p    as in `Sampling` (0: off; 1)
    cards_threshold             a segment ends before a token with this uncertainty (default: uncertainty ends no segment)
    cards_measure               entropy, mcp or evidential (entropy)
    cards_minimum               minimum number of tokens of the segment (1)
    cards_stop                  token id returned at a boundary; if it is in `stop_token_ids`, it also ends the request
    cards_shaping               grammar, biases and penalties as JSON: see `shaping_options` (none)

The `seed` of the request is the number of the candidate. With `n` above 1, vLLM adds 1 for each further candidate. vLLM
requires that `temperature` is 0, or 1 if `n` is above 1. Penalties are rejected, because they would change the draw.

The processor leaves one token in a row of logits. Its value is -1 if the token was drawn, -2 if the logits contain NaN or
infinity, -3 if the grammar allows no token, and the uncertainty (never negative) if it is the stop id. With vLLM's
`logprobs_mode="processed_logits"`, the log-probability of the token (`logprobs=0`) is this value. With any other mode,
`cards_stop` must be an id that the LM never draws.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from cards.boundaries import Boundary, Entropy
from cards.engines.ask import Ask
from cards.engines.base import Engine
from cards.engines.shaper import Shaper
from cards.errors import MismatchError, SettingError, UnknownNameError, check
from cards.grammar import Grammar
from cards.sampling import Sampling, invalid_logits, uniforms
from cards.shaping import Shaping

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

log = logging.getLogger("cards")
KEYS = ("seed", "segment", "temperature", "top_k", "top_p", "min_p", "threshold", "measure", "minimum", "stop", "shaping")
PENALTIES = {"presence": 0.0, "frequency": 0.0, "repetition": 1.0}
LIMIT = 2**31  # of the numbers of candidates, segments and tokens
# The remaining logit of a drawn token; of one whose logits were invalid; of one where the grammar allows no token.
DRAWN, INVALID, REFUSED = -1.0, -2.0, -3.0


def check_supported(boundary: Boundary) -> None:
    """Raise MismatchError if the boundary reads logits and is not Entropy."""
    if boundary.reads_logits and type(boundary) is not Entropy:
        raise MismatchError(
            f"vLLM does not support the boundary {type(boundary).__name__}. Use Entropy, a boundary that reads only text, or "
            "the transformers engine."
        )


def check_drawn(value: float, position: int) -> None:
    """Raise ModelError or SettingError if the remaining logit marks a token that could not be drawn."""
    if value == INVALID:
        raise invalid_logits(position)
    if value == REFUSED:
        raise SettingError("The grammar allows no token of the model here, or it is too complex. Simplify it.")


def request_options(ask: Ask, stop: int) -> dict[str, str | int | float]:
    """Return the options for the candidates of an ask. `stop` is the token id returned at a boundary by uncertainty.

    Raises MismatchError if the boundary reads logits and is not Entropy.
    """
    sampling, boundary = ask.sampling, ask.boundary
    check_supported(boundary)
    options: dict[str, str | int | float] = {
        "seed": ask.seed % 2**64,  # as in `uniforms`, and small enough for the protocol
        "segment": ask.segment,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or 0,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
    }
    if isinstance(boundary, Entropy):
        options |= {"threshold": boundary.threshold, "measure": boundary.measure, "minimum": boundary.minimum, "stop": stop}
    return {f"cards_{key}": value for key, value in options.items()}


def shaping_options(ask: Ask, engine: Engine) -> dict[str, str | int | float]:
    """Return the options for the shaping of an ask; none if it changes no logits.

    `prompt` is the number of prompt tokens. All others belong to the response, and so do the last `thought` tokens of the
    prompt: penalties count them, but a grammar begins after them. `ends` and `size` are the end tokens and the size of the
    vocabulary, which decide with the tokenizer what a grammar allows.
    """
    shaper = engine.shaper(ask.shaping, ask.prompt)
    if shaper is None:
        return {}
    shaping = ask.shaping
    fields = {
        "prompt": len(ask.prompt.token_ids),
        "thought": len(shaper.thought) if shaping.presence_penalty or shaping.frequency_penalty else 0,
        "grammar": shaping.grammar and shaping.grammar.text,
        "bias": shaping.logit_bias,
        "presence": shaping.presence_penalty,
        "frequency": shaping.frequency_penalty,
        "repetition": shaper.penalty,
        "ends": sorted(engine.end_ids),
        "size": engine.vocab_size,
    }
    return {"cards_shaping": json.dumps({name: value for name, value in fields.items() if value})}


@dataclass(frozen=True, slots=True)
class ShapingSpec:
    """The shaping of a request, and what it needs to know of the prompt and the model."""

    shaping: Shaping
    prompt: int  # number of tokens before those that the grammar reads
    thought: int  # number of the last of these that belong to the response
    ends: frozenset[int]
    size: int | None

    @classmethod
    def parse(cls, text: Any) -> ShapingSpec:
        """Parse `cards_shaping`. Raises SettingError."""
        try:
            given = json.loads(text)
            penalties = [float(given.pop(name, value)) for name, value in PENALTIES.items()]
            bias = tuple((int(token), float(number)) for token, number in given.pop("bias", ()))
            prompt, thought = int(given.pop("prompt", 0)), int(given.pop("thought", 0))
            ends, size = frozenset(map(int, given.pop("ends", ()))), given.pop("size", None)
            grammar = given.pop("grammar", None)
            check(not given and (size is None or isinstance(size, int)), f"cards_shaping has unknown fields: {given}.")
            shaping = Shaping(None if grammar is None else Grammar(grammar), bias, *penalties)
        except SettingError:
            raise
        except (TypeError, ValueError, AttributeError) as error:
            raise SettingError(f"cards_shaping must be JSON as `shaping_options` makes it: {error}.") from error
        return cls(shaping, prompt, thought, ends, size)

    def shaper(self, tokens: Sequence[int], tokenizer: Callable[[], Any]) -> Shaper:
        """Return the shaper for a request that begins with these tokens. Raises MismatchError or SettingError."""
        grammar = None
        if self.shaping.grammar is not None:
            from cards.engines.matcher import token_grammar

            grammar = token_grammar(self.shaping.grammar, tokenizer(), self.ends, self.size)
        before, penalty = tokens[: self.prompt], self.shaping.repetition_penalty or 1.0
        return Shaper(self.shaping, penalty, before, grammar, before[self.prompt - self.thought :])


@dataclass(slots=True)
class DrawSpec:
    """The sampling, the boundary and the shaping of a request, and its random numbers."""

    sampling: Sampling
    boundary: Entropy | None
    stop: int
    stream: tuple[int, int, int]  # seed, segment, candidate
    cached: NDArray[np.float64]  # the first random numbers of the stream
    shaping: ShapingSpec | None = None
    shaper: Shaper | None = None  # made with the first token

    def uniform(self, drawn: int) -> float:
        """Return the random number in [0, 1) for the token after `drawn` tokens."""
        if drawn >= len(self.cached):
            self.cached = uniforms(*self.stream, 2 * drawn + 64)
        return float(self.cached[drawn])

    @classmethod
    def parse(cls, params: SamplingParams) -> DrawSpec | None:
        """Parse the options of a request. Return None if there are none. Raises SettingError or UnknownNameError."""
        given = {k.removeprefix("cards_"): v for k, v in (params.extra_args or {}).items() if k.startswith("cards_")}
        if not given:
            return None
        for key in given:
            if key not in KEYS:
                raise UnknownNameError("option", f"cards_{key}", (f"cards_{k}" for k in KEYS))
        seed, segment, top_k = (_integer(given, key) for key in ("seed", "segment", "top_k"))
        check("seed" in given, "A request with cards_ options needs cards_seed, the seed of the response.")
        check(
            params.seed is not None and 0 <= params.seed < LIMIT,
            f"A request with cards_ options needs a seed, the number of the candidate from 0, got {params.seed}.",
        )
        check(
            params.temperature in (0, 1),
            f"temperature must be 0 with cards_ options, got {params.temperature}. Use cards_temperature.",
        )
        check(
            (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0, 0, 1),
            "Penalties cannot be combined with cards_ options.",
        )
        numbers = [_number(given, key, default) for key, default in (("temperature", 1.0), ("top_p", 1.0), ("min_p", 0.0))]
        sampling = Sampling(numbers[0], top_k or None, *numbers[1:])
        boundary, stop = None, 0
        if "threshold" in given:
            measure = given.get("measure", "entropy")
            boundary = Entropy(_integer(given, "minimum", 1), None, _number(given, "threshold", 0.0), measure)
            check("stop" in given, "A request with cards_threshold needs cards_stop, the token id that ends the segment.")
            stop = _integer(given, "stop")
        shaping = ShapingSpec.parse(given["shaping"]) if "shaping" in given else None
        return cls(sampling, boundary, stop, (seed, segment, cast(int, params.seed)), np.zeros(0), shaping)

    def shape(self, row: Any, tokens: Sequence[int], tokenizer: Callable[[], Any]) -> bool:
        """Shape the logits after these tokens of prompt and response, in place. Return whether the grammar allows a token."""
        assert self.shaping is not None
        try:
            self.shaper = self.shaper or self.shaping.shaper(tokens, tokenizer)
            self.shaper.edit(row, tokens[self.shaping.prompt :])
        except Exception as error:  # which would end vLLM
            log.warning("A request cannot be shaped: %s", error)
            return False
        return True


def _integer(given: dict[str, Any], key: str, default: int = 0) -> int:
    value, limit = given.get(key, default), 2**64 if key == "seed" else LIMIT
    check(
        isinstance(value, int) and 0 <= value < limit,
        f"cards_{key} must be an integer between 0 and {limit - 1}, got {value!r}.",
    )
    return cast(int, value)


def _number(given: dict[str, Any], key: str, default: float) -> float:
    value = given.get(key, default)
    check(isinstance(value, int | float), f"cards_{key} must be a number, got {value!r}.")
    return float(value)
