"""The scale of a reward: what the built-in ones have, what combinations make of it, and its conversion to probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from cards.errors import RewardError
from cards.events import Prompt, Response
from cards.methods import RAD
from cards.rewards import FunctionReward, JSONReward, Minimum, Pessimistic, ProcessReward, WeightedSum
from cards.rewards.base import Reward
from cards.rewards.scale import from_probability, sigmoid, to_probability


def reward(scale: str, *values: float) -> FunctionReward:
    given = iter(values)
    return FunctionReward(lambda p, r: next(given), scale=scale)  # type: ignore[arg-type]


def test_a_probability_is_never_squashed_and_other_rewards_are_once() -> None:
    assert [to_probability(0.84, scale) for scale in ("probability", "logit", "unbounded")] == [
        0.84,
        sigmoid(0.84),
        sigmoid(0.84),
    ]
    for scale in ("probability", "logit", "unbounded"):
        assert to_probability(from_probability(0.7, scale), scale) == pytest.approx(0.7)
    assert [sigmoid(x) for x in (-1e4, 0.0, 1e4)] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("made", "scale"),
    [
        (JSONReward(), "probability"),
        (FunctionReward(lambda p, r: 0.0), "unbounded"),
        (ProcessReward(reward("probability")), "probability"),
        (ProcessReward(reward("probability"), join="product"), "probability"),
        (ProcessReward(reward("logit"), join="mean"), "logit"),
        (ProcessReward(reward("logit"), join="product"), "unbounded"),
        (ProcessReward(reward("unbounded")), "unbounded"),
        (ProcessReward(reward("unbounded"), squash=True), "probability"),
        (Minimum([reward("probability"), reward("probability")]), "probability"),
        (Minimum([reward("probability"), reward("logit")]), "unbounded"),
        (Pessimistic([reward("logit"), reward("logit")]), "logit"),
        (WeightedSum([reward("probability"), reward("probability")], [0.3, 0.7]), "probability"),
        (WeightedSum.of([reward("probability"), reward("probability")]), "unbounded"),
        (WeightedSum([reward("probability"), reward("probability")], [2.0, -1.0]), "unbounded"),
        (WeightedSum([reward("logit"), reward("logit")], [2.0, 1.0]), "logit"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_wrappers_and_combinations_pass_the_scale_on(made: Reward, scale: str) -> None:
    assert made.scale == scale


async def score(rewards: Reward, count: int = 1) -> Sequence[float]:
    return await rewards.score(Prompt("?"), [Response("a.b.", (1,))] * count)


async def test_a_bound_on_probabilities_is_one() -> None:
    ensemble = Pessimistic([reward("probability", 0.0), reward("probability", 0.5)], 2.0)
    assert (ensemble.scale, await score(ensemble)) == ("probability", [0.0])


async def test_squash_leaves_probabilities_as_they_are() -> None:
    assert await score(ProcessReward(reward("probability", 0.8, 0.8), ".", squash=True)) == [0.8]
    assert await score(ProcessReward(reward("logit", 0.8, 0.8), ".", squash=True)) == [sigmoid(0.8)]


@pytest.mark.parametrize("value", [-0.1, 1.5])
async def test_a_reward_outside_its_scale_is_refused(value: float) -> None:
    with pytest.raises(RewardError, match="between 0 and 1"):
        await score(reward("probability", value))
    assert await score(reward("unbounded", value)) == [value]


def test_rad_adds_probabilities_as_they_are() -> None:
    import numpy as np

    logits, rewards = np.zeros(2), np.array([0.2, 0.9])
    added = RAD(weight=10.0).score(logits, rewards, reward("probability"))
    assert added.tolist() == pytest.approx([2.0, 9.0])
    squashed = RAD(weight=10.0, target=0.0).score(logits, rewards, reward("unbounded"))
    assert squashed.tolist() == pytest.approx([10 / (1 + math.exp(-r)) for r in rewards])
