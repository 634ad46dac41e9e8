"""Whether the measured trial of a setting confirms what was predicted and asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cards.study.calibrate.plan import Constraints
from cards.study.statistics import Estimate

# Differences that matter: a share of the value for costs, of all segments for fallbacks, of the standard deviation of a
# prompt's rewards for rewards.
TOLERANCES = {"cost": 0.15, "fallback": 0.1, "reward": 0.25}


@dataclass(frozen=True, slots=True)
class Doubt:
    """A rate of the trial that contradicts its prediction or a constraint.

    prompts: the number of prompts that would tell such a difference from chance; None if that many were measured.
    """

    rate: str
    words: str
    prompts: int | None


def doubts(
    predicted: Mapping[str, Estimate],
    measured: Mapping[str, Estimate],
    constraints: Constraints,
    reward_bound: float | None,
    spread: float,
    prompts: int,
) -> list[Doubt]:
    """Compare the rates of a trial with their predictions and with the constraints.

    `reward_bound` is the mean reward that `top` asks for, `spread` the standard deviation of rewards within a prompt, and
    `prompts` the number of prompts of the trial. A difference counts if it is larger than TOLERANCES.
    """

    def found() -> Iterator[tuple[str, str]]:
        limits = {"cost": constraints.max_cost, "fallback": constraints.max_fallback, "reward": reward_bound}
        for name, limit in limits.items():
            value = measured[name].mean
            over = 0.0 if limit is None else limit - value if name == "reward" else value - limit
            if limit is not None and over > _tolerance(name, limit, spread):
                side = "below the asked" if name == "reward" else "above the allowed"
                yield name, f"the measured {name} is {_text(name, measured[name])}, {side} {_number(name, limit)}"
            elif _differs(predicted[name].mean, measured[name], _tolerance(name, value, spread)):
                expected = _number(name, predicted[name].mean)
                yield name, f"the measured {name} is {_text(name, measured[name])}, but {expected} was predicted"

    return [Doubt(name, words, _needed(name, measured[name], spread, prompts)) for name, words in found()]


def _differs(expected: float, value: Estimate, tolerance: float) -> bool:
    return not value.low <= expected <= value.high and abs(value.mean - expected) > tolerance


def _tolerance(name: str, value: float, spread: float) -> float:
    return TOLERANCES[name] * {"cost": abs(value), "fallback": 1.0, "reward": spread}[name]


def _needed(name: str, value: Estimate, spread: float, prompts: int) -> int | None:
    """Return the number of prompts whose interval is as narrow as the tolerance; intervals shrink with its square root."""
    ratio = (value.high - value.low) / 2 / (_tolerance(name, value.mean, spread) or math.inf)
    return math.ceil(prompts * ratio**2 / 10) * 10 if ratio > 1 else None


def _number(name: str, value: float) -> str:
    return f"{value:.0%}" if name == "fallback" else f"{value:.2f}"


def _text(name: str, value: Estimate) -> str:
    return f"{_number(name, value.mean)} [{_number(name, value.low)}, {_number(name, value.high)}]"
