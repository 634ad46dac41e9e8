"""The choice of a setting under constraints, from predicted rates, with bootstrap intervals over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from cards.errors import SettingError, check
from cards.study.calibrate.predict import FIGURES, Row
from cards.study.statistics import SEED, UNBOUNDED, Estimate, bootstrapped

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

RATES = ("acceptance", "candidates", "fallback", "drawn", "cost", "reward", "tokens")
RESAMPLES = 400


@dataclass(frozen=True, slots=True)
class Constraints:
    """Constraints on the setting to choose. Without `top` the setting with the highest reward is chosen.

    max_cost: the highest FLOPs of a response, LM and RM, over those of a plain response.
    max_fallback: the highest share of fallbacks among segments.
    top: the mean reward to reach is the mean over prompts of the quantile 1 - top of the plain responses. The cheapest
    setting that reaches it is chosen.
    """

    max_cost: float | None = None
    top: float | None = None
    max_fallback: float | None = None

    def __post_init__(self) -> None:
        check(
            self.max_cost is None or self.max_cost > 1,
            f"max_cost must be above 1, the cost of plain sampling, got {self.max_cost}.",
        )
        for name in ("top", "max_fallback"):
            value = getattr(self, name)
            check(value is None or 0 < value < 1, f"{name} must be between 0 and 1, for instance 0.1 for 10%, got {value}.")


def rates(figures: Floats) -> dict[str, Floats]:
    """Return rates from sums or means of FIGURES, [..., FIGURES] -> each [...].

    acceptance: accepted over accepted and rejected candidates.
    candidates: candidates per segment.
    fallback: fallbacks per segment.
    drawn: LM tokens drawn per token kept.
    cost: FLOPs of a response over those of a plain one (drawn tokens if the models count no FLOPs).
    tokens: tokens per response.
    """
    import numpy as np

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
    import numpy as np

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
    import numpy as np

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
    import numpy as np

    prompts = figures.shape[1]
    draws = np.random.default_rng(SEED).multinomial(prompts, [1 / prompts] * prompts, RESAMPLES) / prompts

    def corrected(weights: Floats) -> dict[str, Floats]:
        predicted = rates(np.einsum("spf,bp->bsf", figures, weights))
        return {name: value * (factors or {}).get(name, 1.0) for name, value in predicted.items()}

    overall = corrected(np.full((1, prompts), 1 / prompts))
    index = best_index(
        {name: value[0] for name, value in overall.items()},
        constraints,
        None if bounds_by_prompt is None else float(bounds_by_prompt.mean()),
    )
    resampled = corrected(draws)
    resampled_targets = []
    for number, weights in enumerate(draws):
        bound = None if bounds_by_prompt is None else float(bounds_by_prompt @ weights)
        try:
            best = best_index({name: value[number] for name, value in resampled.items()}, constraints, bound)
            resampled_targets.append(targets[best])
        except SettingError:  # no setting meets the constraints on these prompts
            resampled_targets.append(targets.max() if bounds_by_prompt is not None else targets.min())
    return Recommendation(
        index,
        {name: _estimate(name, overall[name][0, index], resampled[name][:, index], prompts) for name in RATES},
        bootstrapped(float(targets[index]), resampled_targets, prompts, (targets.min(), targets.max())),
    )


def measured(rows: Sequence[Row], plain: Sequence[Row]) -> dict[str, Estimate]:
    """Return the measured rates of responses by CARDS: one row per response, in the order of the prompts in `plain`."""
    import numpy as np

    figures = np.array([_figures(row, plain_row) for row, plain_row in zip(rows, plain, strict=True)])
    prompts = len(figures)
    draws = np.random.default_rng(SEED).multinomial(prompts, [1 / prompts] * prompts, RESAMPLES) / prompts
    overall, resampled = rates(figures.mean(0)), rates(draws @ figures)
    return {name: _estimate(name, overall[name], resampled[name], prompts) for name in RATES}


def _estimate(name: str, value: Any, samples: Floats, prompts: int) -> Estimate:
    within = (0.0, 1.0) if name in ("acceptance", "fallback") else UNBOUNDED if name == "reward" else (0.0, inf)
    return bootstrapped(float(value), samples, prompts, within)


def _figures(row: Row, plain: Row) -> list[float]:
    usage: dict[str, Any] = row["usage"]
    drawn = sum(plain["tokens"]) / len(plain["tokens"])
    flops = plain["lm"]["flops"] / max(1, plain["lm"]["tokens"]) * (plain["prompt_read"] + drawn)
    segments = usage["accepted"] + usage["fallbacks"]
    return [
        *(segments, usage["candidates"], usage["fallbacks"], usage["lm_decoded_tokens"]),
        *(row["tokens"], row["reward"], usage["flops"], drawn, flops),
    ]
