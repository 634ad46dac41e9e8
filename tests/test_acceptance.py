"""Threshold schedule and quasi-rejection, at ordinary and at absurd numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cards.acceptance import Schedule, Verdict
from cards.errors import SettingError


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("target", "prompt"), [(8.5, 1.0), (-0.5, -2.0), (2.0, 0.0)])
def test_the_threshold_rises_linearly_from_the_mixed_reward_to_the_target(alpha: float, target: float, prompt: float) -> None:
    schedule = Schedule.from_prompt(target, alpha, prompt, 128)
    start = (1 - alpha) * prompt + alpha * target
    for tokens in (0, 1, 50, 127, 128):
        assert schedule.threshold(tokens) == pytest.approx(start + tokens * (target - start) / 128)
    assert schedule.threshold(128) == pytest.approx(target)


def test_the_threshold_never_exceeds_the_target() -> None:
    schedule = Schedule.from_prompt(8.5, 0.5, 1.0, 10)
    assert schedule.threshold(11) == schedule.threshold(10_000) == 8.5


def test_a_prompt_better_than_the_target_is_held_to_the_target() -> None:
    schedule = Schedule.from_prompt(2.0, 0.5, 6.0, 10)
    assert [schedule.threshold(t) for t in (0, 5, 10)] == [2.0] * 3


def test_soft_acceptance_has_probability_exp_of_the_gap_over_beta() -> None:
    verdict = Verdict(beta=0.7)
    u = (np.arange(20_000) + 0.5) / 20_000
    for gap in (-2.0, -0.7, -0.1, 0.0, 3.0):
        rate = np.mean([verdict.passes(1.0 + gap, 1.0, float(x)) for x in u])
        assert rate == pytest.approx(min(1.0, math.exp(gap / 0.7)), abs=1e-4)


def test_hard_acceptance_is_the_threshold_itself() -> None:
    verdict = Verdict(kind="hard")
    assert verdict.passes(1.0, 1.0, 1 - 2**-53)
    assert not verdict.passes(1.0 - 1e-12, 1.0, 0.0)


@pytest.mark.parametrize("beta", [1e-3, 0.7, 1e3])
def test_gaps_of_a_million_neither_overflow_nor_turn_the_verdict(beta: float) -> None:
    verdict = Verdict(beta)
    assert verdict.passes(1e6, 0.0, 1 - 2**-53)
    assert verdict.passes(1e300, -1e300, 0.5)
    assert verdict.passes(-1e6, 0.0, 0.5) is False
    assert verdict.passes(-1e300, 1e300, 0.5) is False


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("u", [0.0, 1e-300, 0.5, 1 - 2**-53])
@pytest.mark.parametrize(("reward", "threshold"), [(math.nan, 1.0), (1.0, math.nan), (-math.inf, 1.0)])
def test_what_is_no_number_is_never_accepted(kind: str, u: float, reward: float, threshold: float) -> None:
    assert not Verdict(kind=kind).passes(reward, threshold, u)  # type: ignore[arg-type]


@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan])
def test_beta_must_be_positive_and_finite(beta: float) -> None:
    with pytest.raises(SettingError, match="beta"):
        Verdict(beta)


def test_an_unknown_acceptance_is_refused() -> None:
    with pytest.raises(SettingError, match="acceptance"):
        Verdict(kind="maybe")  # type: ignore[arg-type]
