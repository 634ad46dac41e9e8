"""Rewards by name: built-in kinds, plug-ins (entry points `cards.rewards`) and reward models."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, cast

import cards.rewards
from cards.engines.loader import LOCAL, backend
from cards.errors import MismatchError, UnknownNameError
from cards.plugins import is_class, plugins
from cards.rewards.base import Reward
from cards.rewards.combine import WeightedSum


@cache
def reward_classes() -> dict[str, type[Reward]]:
    """Return the reward classes with names of the form `kind:details`, by kind."""
    builtin = {cls.kind: cls for cls in vars(cards.rewards).values() if is_class(cls, Reward) and cls.kind}
    return builtin | plugins("cards.rewards", _kind, builtin)


def _kind(name: str, cls: Any) -> str:
    if not (is_class(cls, Reward) and cls.kind):
        raise MismatchError("it is not a subclass of cards.Reward with a kind")
    return cast(str, cls.kind)


def load_reward(name: str, **options: Any) -> Reward:
    """Load a reward by the name of a model, by `kind:details`, or as a sum of both (`tiny + json`).

    Model names are as for engines, and options are those of the back end. The target of a sum is the sum of the targets.
    Raises UnknownNameError, ModelError or SettingError.
    """
    if " + " in name:
        return WeightedSum.of([load_reward(part.strip(), **options) for part in name.split(" + ")])
    kind, colon, details = name.partition(":")
    if kind in reward_classes():
        return reward_classes()[kind].named(details, **options)
    found = backend(kind)
    if colon and found is LOCAL and not Path(name).exists():
        raise UnknownNameError("kind of reward", kind, reward_classes(), "A name without a colon is the name of a model.")
    return cast(Reward, found.load_reward(name, **options))
