"""The setting for a wish, from what is predicted for all of them, with bootstrap intervals over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cards.errors import SettingError, check
from cards.study.calibrate.predict import FIGURES, Row
from cards.study.statistics import SEED, Estimate, bounds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

RATES = ("acceptance", "candidates", "fallback", "drawn", "cost", "reward", "tokens")
RESAMPLES = 400


@dataclass(frozen=True, slots=True)
class Wish:
    """max_cost: FLOPs of an answer, LM and RM, over those of a plain one; max_fallback: share of segments taken untested.

    top: the mean reward is to be that of the top share of the LM's own answers, the mean over prompts of the quantile 1 - top
    of each prompt's answers. With `top` the cheapest setting is chosen, without it the one of highest reward.
    """

    max_cost: float | None = None
    top: float | None = None
    max_fallback: float | None = None

    def __post_init__(self) -> None:
        check(self.max_cost is None or self.max_cost > 1, f"max_cost must be above 1, plain sampling, not {self.max_cost}.")
        for name in ("top", "max_fallback"):
            value = getattr(self, name)
            check(value is None or 0 < value < 1, f"{name} must lie between 0 and 1, as in 0.1 for a tenth, not {value}.")


def rates(figures: Floats) -> dict[str, Floats]:
    """Rates of sums or means of FIGURES, [..., FIGURES] -> each [...].

    acceptance: accepted over accepted and rejected; candidates: of a segment; fallback: of segments; drawn: LM tokens drawn
    for each token kept; cost: FLOPs of an answer over those of a plain one (drawn tokens where models count no FLOPs);
    tokens: of an answer.
    """
    import numpy as np

    part = {name: figures[..., place] for place, name in enumerate(FIGURES)}
    counted = np.all(part["plain_flops"] > 0)
    tested = part["candidates"] - part["fallbacks"]  # the last candidate of a fallback gets no verdict
    return {
        "acceptance": (part["segments"] - part["fallbacks"]) / tested,
        "candidates": part["candidates"] / part["segments"],
        "fallback": part["fallbacks"] / part["segments"],
        "drawn": part["drawn"] / part["kept"],
        "cost": part["flops"] / part["plain_flops"] if counted else part["drawn"] / part["plain_drawn"],
        "reward": part["reward"],
        "tokens": part["kept"],
    }


def recommended(found: dict[str, Floats], wish: Wish, bar: float | None) -> int:
    """The place of the setting for the wish, of rates [settings]; `bar` is the reward for `top`. Raises SettingError."""
    import numpy as np

    fits = np.ones(len(found["cost"]), bool)
    if wish.max_cost is not None:
        fits &= found["cost"] <= wish.max_cost
    if wish.max_fallback is not None:
        fits &= found["fallback"] <= wish.max_fallback
    if bar is not None:
        reaches = fits & (found["reward"] >= bar)
        if not reaches.any():
            best = float(found["reward"][fits].max()) if fits.any() else float("nan")
            raise SettingError(
                f"No setting reaches a mean reward of {bar:.2f}, the top {wish.top:.0%} of plain answers, within the rest of "
                f"the wish; the highest is {best:.2f}. Ask for a larger share, or allow more cost or fallbacks."
            )
        return int(np.flatnonzero(reaches)[found["cost"][reaches].argmin()])
    if not fits.any():
        low, rate = float(found["cost"].min()), float(found["fallback"].min())
        raise SettingError(f"No setting fulfils the wish: the lowest cost is {low:.2f}, the lowest fallback rate {rate:.1%}.")
    return int(np.flatnonzero(fits)[found["reward"][fits].argmax()])


def bar_of(answers: Sequence[Row], top: float | None) -> Floats | None:
    """The quantile 1 - top of each prompt's own answers, [prompts]."""
    import numpy as np

    return None if top is None else np.array([np.quantile(row["rewards"], 1 - top) for row in answers])


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A recommended setting: its place in the grid, its rates, and the range of r* that other prompts would have led to."""

    place: int
    rates: dict[str, Estimate]
    target: Estimate


def choose(
    figures: Floats, targets: Floats, wish: Wish, bars: Floats | None, factors: dict[str, float] | None = None
) -> Recommendation:
    """From predictions [settings, prompts, FIGURES]; `factors` correct the rates by what was measured. Raises SettingError."""
    import numpy as np

    prompts = figures.shape[1]
    draws = np.random.default_rng(SEED).multinomial(prompts, [1 / prompts] * prompts, RESAMPLES) / prompts

    def corrected(weights: Floats) -> dict[str, Floats]:
        found = rates(np.einsum("spf,bp->bsf", figures, weights))
        return {name: value * (factors or {}).get(name, 1.0) for name, value in found.items()}

    everyone = corrected(np.full((1, prompts), 1 / prompts))
    place = recommended(
        {name: value[0] for name, value in everyone.items()}, wish, None if bars is None else float(bars.mean())
    )
    resampled = corrected(draws)
    again = []
    for number, weights in enumerate(draws):
        bar = None if bars is None else float(bars @ weights)
        try:
            again.append(targets[recommended({name: value[number] for name, value in resampled.items()}, wish, bar)])
        except SettingError:  # for these prompts the wish cannot be fulfilled
            again.append(targets.max() if bars is not None else targets.min())
    return Recommendation(
        place,
        {name: Estimate(float(everyone[name][0, place]), *bounds(resampled[name][:, place])) for name in RATES},
        Estimate(float(targets[place]), *bounds(again)),
    )


def measured(rows: Sequence[Row], answers: Sequence[Row]) -> dict[str, Estimate]:
    """The same rates of answers that CARDS has given (one row each, same order as the prompts' plain answers)."""
    import numpy as np

    figures = np.array([_figures(row, plain) for row, plain in zip(rows, answers, strict=True)])
    prompts = len(figures)
    draws = np.random.default_rng(SEED).multinomial(prompts, [1 / prompts] * prompts, RESAMPLES) / prompts
    found, resampled = rates(figures.mean(0)), rates(draws @ figures)
    return {name: Estimate(float(found[name]), *bounds(resampled[name])) for name in RATES}


def _figures(row: Row, plain: Row) -> list[float]:
    usage: dict[str, Any] = row["usage"]
    drawn = sum(plain["tokens"]) / len(plain["tokens"])
    flops = plain["lm"]["flops"] / max(1, plain["lm"]["tokens"]) * (plain["prompt_read"] + drawn)
    segments = usage["accepted"] + usage["fallbacks"]
    return [
        *(segments, usage["candidates"], usage["fallbacks"], usage["lm_decoded_tokens"]),
        *(row["tokens"], row["reward"], usage["flops"], drawn, flops),
    ]
