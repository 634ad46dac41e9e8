"""Weights of a sum can change, and its target reward follows them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from cards import Decoder
from cards.engines.mock import MockEngine
from cards.errors import MismatchError, SettingError, UnknownNameError
from cards.methods import CARDS, BestOfN, Vanilla
from cards.rewards import FunctionReward, WeightedSum
from cards.rewards.weights import PartStatistics

MEAN, COVARIANCE = (1.0, -2.0, 0.5), ((2.0, -1.2, 0.1), (-1.2, 1.0, 0.0), (0.1, 0.0, 0.3))
STATISTICS = PartStatistics(MEAN, COVARIANCE)


def parts(*targets: float | None) -> list[FunctionReward]:
    found = [("a", 1.0), ("b", 2.0), ("length", 1.0)]
    rewards: list[FunctionReward] = []
    for (name, scale), target in zip(found, targets or (None,) * 3, strict=True):

        async def score(prompt: str, response: str, name: str = name, scale: float = scale) -> float:
            return scale * (len(response) if name == "length" else response.count(name))

        rewards.append(FunctionReward(score, name=name, target=target))
    return rewards


def test_statistics_are_those_of_numpy() -> None:
    samples = np.random.default_rng(0).normal(size=(40, 3)) @ np.array([[1, 0.5, 0], [0, 2, 0], [1, 0, 0.1]])
    found = PartStatistics.of(samples.tolist())
    assert found.mean == pytest.approx(samples.mean(0))
    assert np.array(found.covariance) == pytest.approx(np.cov(samples.T))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (2.0, 0.0, 1.0), (0.0, 3.0, 0.0), (1.0, -1.0, 5.0)])
def test_the_target_stays_at_its_quantile_of_normally_distributed_rewards(weights: tuple[float, ...]) -> None:
    """The test would reject the sum of the quantiles of the parts."""
    before, level = (1.0, 1.0, 1.0), 0.9
    samples = np.random.default_rng(1).multivariate_normal(MEAN, COVARIANCE, 200_000)
    target = float(np.quantile(samples @ before, level))
    followed = STATISTICS.target(weights, before, target)
    assert np.mean(samples @ weights < followed) == pytest.approx(level, abs=0.005)
    naive = float(np.quantile(samples, level, 0) @ weights)
    if weights == before:
        assert abs(np.mean(samples @ weights < naive) - level) > 0.05


def test_the_target_does_not_move_with_its_own_weights_and_scales_with_them() -> None:
    before = (1.0, 0.5, 2.0)
    for target in (-3.0, 0.0, 40.0):
        assert STATISTICS.target(before, before, target) == pytest.approx(target)
        assert STATISTICS.target([3 * w for w in before], before, target) == pytest.approx(3 * target)
        moved = STATISTICS.target((2.0, 0.5, 1.0), before, target)
        assert STATISTICS.target(before, (2.0, 0.5, 1.0), moved) == pytest.approx(target)


def test_statistics_that_cannot_be_are_refused() -> None:
    constant = PartStatistics.of([(1.0, 2.0)] * 3)
    with pytest.raises(SettingError, match="have the same reward"):
        constant.target((1.0, 2.0), (1.0, 1.0), 3.0)
    with pytest.raises(SettingError, match="2 responses"):
        PartStatistics.of([(1.0,)])
    for wrong in (((), ()), ((1.0,), ((math.nan,),)), ((1.0, 2.0), ((1.0, 0.0),))):
        with pytest.raises(SettingError, match="mean and a covariance"):
            PartStatistics(*wrong)
    with pytest.raises(SettingError, match="another number of parts"):
        WeightedSum(parts()[:2], [1, 1], statistics=STATISTICS)


def test_weights_are_set_by_name_and_the_others_stay() -> None:
    total = WeightedSum(parts(), [1.0, 2.0, 3.0], target=4.0, names=("kind", "true", "brief"), statistics=STATISTICS)
    changed = total.with_weights({"true": 0.5})
    assert (changed.weights, changed.names, changed.rewards) == ((1.0, 0.5, 3.0), total.names, total.rewards)
    assert changed.target == pytest.approx(STATISTICS.target((1.0, 0.5, 3.0), (1.0, 2.0, 3.0), 4.0))
    assert changed.with_weights({"true": 2.0}).target == pytest.approx(4.0)
    assert total.with_weights({}).target == 4.0
    assert total.name == "kind + true + brief"
    with pytest.raises(UnknownNameError, match="'brief'"):
        total.with_weights({"breif": 1.0})
    with pytest.raises(SettingError, match="differ from 0"):
        total.with_weights(dict.fromkeys(total.names, 0.0))
    with pytest.raises(SettingError, match="finite"):
        total.with_weights({"kind": math.inf})
    with pytest.raises(SettingError, match="different names"):
        WeightedSum(parts(), [1, 1, 1], names=("x", "x", "y")).with_weights({"y": 2.0})


def test_without_statistics_the_target_is_the_sum_of_those_of_the_parts() -> None:
    assert WeightedSum.of(parts(1.0, 2.0, 3.0)).with_weights({"b": 0.5}).target == 1.0 + 0.5 * 2.0 + 3.0
    assert WeightedSum.of(parts(1.0, None, 3.0)).with_weights({"b": 0.5}).target is None


def test_a_decoder_with_weights_runs_on_the_same_models_with_targets_that_follow() -> None:
    engine: Any = MockEngine(lambda ids: [0.3, 0.3, 0.3, 0.1], "abcd", end="d")
    total = WeightedSum(parts(), [1.0, 1.0, 1.0], statistics=STATISTICS)
    decoder = Decoder(engine, total, CARDS(target=2.0, width=1))
    changed = decoder.with_weights({"b": -1.0})
    assert changed.engine is engine
    assert changed.method.target == pytest.approx(STATISTICS.target((1, -1, 1), (1, 1, 1), 2.0))  # type: ignore[attr-defined]
    nested = Decoder(engine, total, BestOfN(n=2, inner=CARDS(target=2.0))).with_weights({"b": -1.0})
    assert nested.method.inner.target == changed.method.target  # type: ignore[attr-defined]
    best = Decoder(engine, total, BestOfN(n=8))
    few, many = best.with_weights({"b": -5.0})("c", seed=1), best.with_weights({"b": 5.0})("c", seed=1)
    assert few.text.count("b") < many.text.count("b")
    assert few.reward == few.text.count("a") - 10 * few.text.count("b") + len(few.text)
    with pytest.raises(MismatchError, match="sum of rewards"):
        Decoder(engine, None, Vanilla()).with_weights({"b": 1.0})
    bare = Decoder(engine, WeightedSum.of(parts()), CARDS(target=2.0))
    with pytest.raises(SettingError, match="cards calibrate"):
        bare.with_weights({"b": 2.0})
