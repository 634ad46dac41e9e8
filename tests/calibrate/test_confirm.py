"""A trial that contradicts its prediction or a constraint is not recommended, and the reason is given."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cards.study.calibrate.confirm import doubts
from cards.study.calibrate.plan import Constraints
from cards.study.statistics import Estimate

GOOD = {"cost": Estimate(2.0, 1.8, 2.2), "fallback": Estimate(0.29, 0.2, 0.4), "reward": Estimate(1.0, 0.8, 1.2)}


def names(measured: dict[str, Estimate], constraints: Constraints, bound: float | None = None) -> list[str]:
    return [doubt.rate for doubt in doubts(GOOD, GOOD | measured, constraints, bound, 1.0, 8)]


def test_a_trial_as_predicted_is_confirmed() -> None:
    assert names({}, Constraints(max_cost=3, max_fallback=0.5), 0.9) == []


def test_small_differences_do_not_count() -> None:
    assert names({"cost": Estimate(2.2, 2.15, 2.25), "reward": Estimate(1.1, 1.05, 1.15)}, Constraints(max_cost=3)) == []


def test_a_wide_interval_around_the_prediction_does_not_count() -> None:
    assert names({"fallback": Estimate(0.5, 0.2, 0.8)}, Constraints()) == []


@pytest.mark.parametrize(
    ("measured", "constraints", "bound", "words"),
    [
        ({"fallback": Estimate(0.83, 0.7, 0.93)}, Constraints(), None, "fallback is 83% [70%, 93%], but 29% was predicted"),
        ({"fallback": Estimate(0.83, 0.7, 0.93)}, Constraints(max_fallback=0.5), None, "above the allowed 50%"),
        ({"cost": Estimate(4.0, 1.5, 6.5)}, Constraints(max_cost=3), None, "cost is 4.00 [1.50, 6.50], above the allowed 3.00"),
        ({"reward": Estimate(0.5, 0.1, 1.3)}, Constraints(top=0.1), 0.9, "reward is 0.50 [0.10, 1.30], below the asked 0.90"),
        ({"reward": Estimate(0.5, 0.3, 0.7)}, Constraints(), None, "reward is 0.50 [0.30, 0.70], but 1.00 was predicted"),
    ],
)
def test_contradictions_are_named(
    measured: dict[str, Estimate], constraints: Constraints, bound: float | None, words: str
) -> None:
    [doubt] = doubts(GOOD, GOOD | measured, constraints, bound, 1.0, 8)
    assert words in doubt.words


def test_the_number_of_prompts_that_would_tell_grows_with_the_interval() -> None:
    wide = Estimate(0.83, 0.43, 1.0)
    [doubt] = doubts(GOOD, GOOD | {"fallback": replace(wide, low=0.5)}, Constraints(), None, 1.0, 8)
    assert doubt.prompts == 50  # half the interval is 0.25, and 0.1 is wanted: 8 x 2.5^2
    [doubt] = doubts(GOOD, GOOD | {"fallback": Estimate(0.83, 0.8, 0.86)}, Constraints(), None, 1.0, 8)
    assert doubt.prompts is None
