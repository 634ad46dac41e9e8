"""Scales of rewards, and their conversion to probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

# probability: between 0 and 1. logit: log-odds of a probability. unbounded: any other number, such as a Bradley-Terry reward.
Scale = Literal["probability", "logit", "unbounded"]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def to_probability(reward: float, scale: Scale) -> float:
    """Return the probability that a reward stands for. Unbounded rewards are read as log-odds against a reward of 0."""
    return reward if scale == "probability" else sigmoid(reward)


def from_probability(probability: float, scale: Scale) -> float:
    """Return the reward that stands for a probability between 0 and 1, both excluded: the inverse of `to_probability`."""
    return probability if scale == "probability" else math.log(probability / (1 - probability))


def log_odds(reward: float, scale: Scale) -> float:
    """Return the log-odds that a reward stands for. Probabilities of 0 and 1 count as 1e-7 and 1 - 1e-7."""
    return from_probability(min(max(reward, 1e-7), 1 - 1e-7), "logit") if scale == "probability" else reward


def shared_scale(scales: Iterable[Scale]) -> Scale:
    """Return the scale of all the rewards, or `unbounded` if they differ."""
    found = set(scales)
    return found.pop() if len(found) == 1 else "unbounded"
