"""Rewards by name: kinds that come with the package or with plug-ins (entry points `cards.rewards`), and reward models."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, cast

import cards.rewards
from cards.engines.loader import backend
from cards.errors import MismatchError, UnknownNameError
from cards.plugins import is_class, plugins
from cards.rewards.base import Reward
from cards.rewards.combine import WeightedSum


@cache
def reward_classes() -> dict[str, type[Reward]]:
    """The kinds of rewards that are named as `kind:details`."""
    own = {cls.kind: cls for cls in vars(cards.rewards).values() if is_class(cls, Reward) and cls.kind}
    return own | plugins("cards.rewards", _kind, own)


def _kind(name: str, cls: Any) -> str:
    if not (is_class(cls, Reward) and cls.kind):
        raise MismatchError("it is not a subclass of cards.Reward with a kind")
    return cast(str, cls.kind)


def load_reward(name: str, **options: Any) -> Reward:
    """Load a reward: the name of a reward model (as for engines), `kind:details`, or a sum of such (`tiny + json`).

    The target of a sum is the sum of the targets. options: those of the back end. Raises UnknownNameError, ModelError or
    SettingError.
    """
    if " + " in name:
        return WeightedSum.of([load_reward(part.strip(), **options) for part in name.split(" + ")])
    kind, colon, details = name.partition(":")
    if kind in reward_classes():
        return reward_classes()[kind].named(details, **options)
    found = backend(kind)
    if colon and found is backend("") and not Path(name).exists():
        raise UnknownNameError("kind of reward", kind, reward_classes(), "Without a colon, a reward is the name of a model.")
    return cast(Reward, found.load_reward(name, **options))
