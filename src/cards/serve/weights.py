"""Weights of the parts of a reward that clients can set, within bounds that the operator sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cards.decoder import with_targets
from cards.errors import SettingError, UnknownNameError, check
from cards.methods.base import Method
from cards.rewards.base import Reward
from cards.rewards.combine import WeightedSum
from cards.serve.api_key import NAME

Bounds = Mapping[str, tuple[float, float]]


class ClientWeights:
    """The public names of the parts of a reward, in their order, each with the lowest and the highest weight.

    Raises SettingError if the reward is not a sum of as many rewards, or its own weights are out of bounds.
    """

    def __init__(self, reward: Reward | None, bounds: Bounds) -> None:
        count = len(reward.rewards) if isinstance(reward, WeightedSum) else 1
        check(
            isinstance(reward, WeightedSum) and count == len(bounds),
            f"Weights need a sum of as many rewards, such as REWARD+REWARD: got {len(bounds)} weights for {count} rewards.",
        )
        assert isinstance(reward, WeightedSum)
        self.bounds = dict(bounds)
        for (name, (low, high)), own in zip(bounds.items(), reward.weights, strict=True):
            check(NAME.fullmatch(name) is not None, f"The name of a weight has letters, digits, `_`, `.` or `-`, got {name!r}.")
            check(
                math.isfinite(low) and math.isfinite(high) and low <= own <= high,
                f"The bounds of the weight {name!r} must be finite numbers around its default {own:g}, got {low} and {high}.",
            )
        self.reward = WeightedSum(
            reward.rewards, reward.weights, target=reward.target, names=tuple(bounds), statistics=reward.statistics
        )

    @property
    def shown(self) -> str:
        """The name of the reward for clients."""
        return " + ".join(self.bounds)

    def apply(self, method: Method, weights: Mapping[str, float]) -> tuple[WeightedSum, Method]:
        """Return the reward with a client's weights, and the method with target rewards that follow them.

        A target that does not follow is left out, so that the client has to set it. Raises UnknownNameError or SettingError.
        """
        for name, value in weights.items():
            if name not in self.bounds:
                raise UnknownNameError("weight", name, self.bounds)
            low, high = self.bounds[name]
            check(
                low <= value <= high, f"The weight {name} must be between {low:g} and {high:g} on this server, got {value:g}."
            )
        reward = self.reward.with_weights(weights)

        def follow(target: float) -> float | None:
            try:
                return self.reward.follow(reward.weights, target)
            except SettingError:
                reward.target = None
                return None

        return reward, with_targets(method, follow)

    def of(self, reward: Reward | None) -> dict[str, float]:
        """Return the weights of a reward of `apply`, or the defaults for another one."""
        weights = reward.weights if isinstance(reward, WeightedSum) else self.reward.weights
        return dict(zip(self.bounds, weights, strict=True))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the default and the bounds of each weight, for the description of the model."""
        defaults = zip(self.bounds.items(), self.reward.weights, strict=True)
        return {name: {"default": own, "at_least": low, "at_most": high} for (name, (low, high)), own in defaults}
