"""The choice of a setting under constraints, from predicted rates, with bootstrap intervals over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cards.errors import SettingError
from cards.study.calibrate.plan import Constraints
from cards.study.calibrate.predict import FIGURES
from cards.study.journal import Row
from cards.study.statistics import UNBOUNDED, Estimate, bootstrap, with_interval

Floats = NDArray[np.float64]

RESAMPLES = 400


def rates(figures: Floats) -> dict[str, Floats]:
    """Return rates from sums or means of FIGURES, [..., FIGURES] -> each [...].

    acceptance: accepted over accepted and rejected candidates.
    candidates: candidates per segment.
    fallback: fallbacks per segment.
    drawn: LM tokens drawn per token kept.
    cost: FLOPs of a response over those of a plain one (drawn tokens if the models count no FLOPs).
    tokens: tokens per response.
    """
    part = {name: figures[..., index] for index, name in enumerate(FIGURES)}
    counted = np.all(part["plain_flops"] > 0)
    tested = part["candidates"] - part["fallbacks"]  # the last candidate before a fallback is neither accepted nor rejected
    return {
        "acceptance": (part["segments"] - part["fallbacks"]) / tested,
        "candidates": part["candidates"] / part["segments"],
        "fallback": part["fallbacks"] / part["segments"],
        "drawn": part["drawn"] / part["kept"],
        "cost": part["flops"] / part["plain_flops"] if counted else part["drawn"] / part["plain_drawn"],
        "reward": part["reward"],
        "tokens": part["kept"],
    }


def best_index(predicted: dict[str, Floats], constraints: Constraints, reward_bound: float | None) -> int:
    """Return the index of the best setting, from predicted rates [settings].

    `reward_bound` is the lowest mean reward allowed by `top`. Raises SettingError if no setting meets the constraints.
    """
    allowed = np.ones(len(predicted["cost"]), bool)
    if constraints.max_cost is not None:
        allowed &= predicted["cost"] <= constraints.max_cost
    if constraints.max_fallback is not None:
        allowed &= predicted["fallback"] <= constraints.max_fallback
    if reward_bound is not None:
        reaches = allowed & (predicted["reward"] >= reward_bound)
        if not reaches.any():
            best = float(predicted["reward"][allowed].max()) if allowed.any() else float("nan")
            raise SettingError(
                f"No setting reaches a mean reward of {reward_bound:.2f}, the top {constraints.top:.0%} of plain responses, "
                f"under the other constraints: the highest is {best:.2f}. Raise top, max_cost or max_fallback."
            )
        return int(np.flatnonzero(reaches)[predicted["cost"][reaches].argmin()])
    if not allowed.any():
        cost, fallback = float(predicted["cost"].min()), float(predicted["fallback"].min())
        raise SettingError(
            f"No setting meets the constraints: the lowest cost is {cost:.2f} and the lowest fallback rate is {fallback:.1%}. "
            "Raise max_cost or max_fallback."
        )
    return int(np.flatnonzero(allowed)[predicted["reward"][allowed].argmax()])


def reward_bounds(responses: Sequence[Row], top: float | None) -> Floats | None:
    """Return the quantile 1 - top of the rewards of each prompt's plain responses, [prompts]."""
    return None if top is None else np.array([np.quantile(row["rewards"], 1 - top) for row in responses])


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The chosen setting: its index in the grid, its rates, and r* with its range over resampled prompts."""

    index: int
    rates: dict[str, Estimate]
    target: Estimate


def choose(
    figures: Floats,
    targets: Floats,
    constraints: Constraints,
    bounds_by_prompt: Floats | None,
    factors: dict[str, float] | None = None,
) -> Recommendation:
    """Choose a setting from predictions [settings, prompts, FIGURES].

    `factors` correct the predicted rates by measured ones. Raises SettingError if no setting meets the constraints.
    """
    weights = bootstrap(figures.shape[1], RESAMPLES)
    predicted = rates(np.einsum("spf,bp->bsf", figures, weights))
    predicted = {name: value * (factors or {}).get(name, 1.0) for name, value in predicted.items()}

    def best(number: int) -> int:
        bound = None if bounds_by_prompt is None else float(bounds_by_prompt @ weights[number])
        return best_index({name: value[number] for name, value in predicted.items()}, constraints, bound)

    index = best(0)
    resampled = []
    for number in range(1, len(weights)):
        try:
            resampled.append(targets[best(number)])
        except SettingError:  # no setting meets the constraints on these prompts
            resampled.append(targets.max() if bounds_by_prompt is not None else targets.min())
    return Recommendation(
        index,
        {name: _estimate(name, values[:, index], figures.shape[1]) for name, values in predicted.items()},
        with_interval([targets[index], *resampled], figures.shape[1], (targets.min(), targets.max())),
    )


def measured(rows: Sequence[Row], plain: Sequence[Row]) -> dict[str, Estimate]:
    """Return the measured rates of responses by CARDS: one row per response, in the order of the prompts in `plain`."""
    figures = np.array([_figures(row, plain_row) for row, plain_row in zip(rows, plain, strict=True)])
    found = rates(bootstrap(len(figures), RESAMPLES) @ figures)
    return {name: _estimate(name, values, len(figures)) for name, values in found.items()}


def _estimate(name: str, values: Floats, prompts: int) -> Estimate:
    within = (0.0, 1.0) if name in ("acceptance", "fallback") else UNBOUNDED if name == "reward" else (0.0, inf)
    return with_interval(values, prompts, within)


def _figures(row: Row, plain: Row) -> list[float]:
    usage: dict[str, Any] = row["usage"]
    drawn = sum(plain["tokens"]) / len(plain["tokens"])
    flops = plain["lm"]["flops"] / max(1, plain["lm"]["tokens"]) * (plain["prompt_read"] + drawn)
    segments = usage["accepted"] + usage["fallbacks"]
    return [
        *(segments, usage["candidates"], usage["fallbacks"], usage["lm_decoded_tokens"]),
        *(row["tokens"], row["reward"], usage["flops"], drawn, flops),
    ]
