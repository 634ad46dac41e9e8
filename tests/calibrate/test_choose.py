"""Constraints choose the best setting, and an error names the closest one if none meets them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cards.errors import SettingError
from cards.study.calibrate.choose import best_index, choose, measured, reward_bounds
from cards.study.calibrate.plan import Constraints

FOUND = {
    "cost": np.array([1.5, 2.5, 3.5, 6.0]),
    "fallback": np.array([0.0, 0.01, 0.015, 0.3]),
    "reward": np.array([0.5, 1.0, 1.4, 1.9]),
}


@pytest.mark.parametrize(
    ("constraints", "bar", "place"),
    [
        (Constraints(max_cost=3), None, 1),
        (Constraints(max_fallback=0.02), None, 2),
        (Constraints(max_cost=3, max_fallback=0.005), None, 0),
        (Constraints(top=0.1), 0.9, 1),
        (Constraints(top=0.1), 1.5, 3),
    ],
)
def test_constraints_choose_the_best_setting(constraints: Constraints, bar: float | None, place: int) -> None:
    assert best_index(FOUND, constraints, bar) == place


@pytest.mark.parametrize(
    ("constraints", "bar", "says"),
    [
        (Constraints(max_cost=1.2), None, "lowest cost is 1.50"),
        (Constraints(top=0.01), 2.5, "the highest is 1.90"),
        (Constraints(top=0.1, max_cost=3), 1.2, "the highest is 1.00"),
    ],
)
def test_constraints_that_no_setting_meets_name_the_closest(constraints: Constraints, bar: float | None, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        best_index(FOUND, constraints, bar)


@pytest.mark.parametrize("values", [{"max_cost": 1.0}, {"top": 0.0}, {"top": 10.0}, {"max_fallback": 2.0}])
def test_invalid_constraints_are_rejected(values: dict[str, float]) -> None:
    with pytest.raises(SettingError):
        Constraints(**values)


def test_the_bar_is_the_quantile_of_each_prompts_own_answers() -> None:
    rows: list[dict[str, Any]] = [{"rewards": list(range(11))}, {"rewards": [0.0] * 11}]
    bars = reward_bounds(rows, 0.1)
    assert bars is not None
    assert bars.tolist() == [9.0, 0.0]


def test_intervals_hold_what_varies_between_prompts() -> None:
    rng = np.random.default_rng(0)
    figures = np.ones((2, 40, 9))
    figures[:, :, 2] = 0.0  # no fallbacks
    figures[:, :, 6] = np.array([[2.0], [3.0]]) + rng.normal(0, 0.5, (2, 40))  # flops
    figures[:, :, 5] = np.array([[1.0], [2.0]])  # reward
    found = choose(figures, np.array([0.5, 1.5]), Constraints(max_cost=3.0), None)
    cost = found.rates["cost"]
    assert found.index == int(figures[1, :, 6].mean() <= 3)
    assert cost.low < cost.mean < cost.high
    assert cost.high - cost.low == pytest.approx(4 * 0.5 / 40**0.5, rel=0.3)
    assert (found.target.low, found.target.high) == (
        0.5,
        1.5,
    )  # some of the resampled prompts allow the dearer one, some do not


def test_factors_correct_what_was_predicted() -> None:
    figures = np.ones((2, 5, 9))
    figures[:, :, 2] = 0.0
    figures[1, :, 6], figures[1, :, 5] = 2.5, 2.0
    targets = np.array([0.5, 1.5])
    assert choose(figures, targets, Constraints(max_cost=3.0), None).index == 1
    assert choose(figures, targets, Constraints(max_cost=3.0), None, {"cost": 1.3}).index == 0


def test_measured_rates_are_those_of_the_books() -> None:
    usage = {"accepted": 2, "fallbacks": 1, "candidates": 30, "lm_decoded_tokens": 60, "flops": 900.0}
    plain = {"tokens": [10, 20], "lm": {"flops": 300.0, "tokens": 100}, "prompt_read": 5}
    found = measured([{"tokens": 20, "reward": 1.5, "usage": usage}], [plain])
    assert found["acceptance"].mean == pytest.approx(2 / 29)
    assert found["fallback"].mean == pytest.approx(1 / 3)
    assert found["cost"].mean == pytest.approx(900 / (3 * 20))
