"""Options of model loaders: device, dtype, cache slots, context and draft."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from cards.engines.base import Engine
from cards.engines.speculative import check_gamma
from cards.errors import check
from cards.registry import load_engine, load_reward
from cards.rewards.base import Reward

DRAFTING = ("draft", "gamma", "skip_layers")


@dataclass(frozen=True, slots=True)
class Placement:
    """Options for `load_engine` and `load_reward`. None means the default of the back end. Raises SettingError."""

    device: str = "auto"
    dtype: str = "auto"
    slots: int | None = None
    context: int | None = None
    draft: str | None = None
    gamma: int = 4
    skip_layers: float | None = None

    def __post_init__(self) -> None:
        check(
            self.draft is None or self.skip_layers is None,
            f"Give either draft or skip_layers, got {self.draft!r} and {self.skip_layers}.",
        )
        check_gamma(self.gamma)
        check(
            self.skip_layers is None or 0 < self.skip_layers < 1,
            f"skip_layers must be above 0 and below 1, got {self.skip_layers}.",
        )

    def engine(self, name: str) -> Engine:
        """Load the LM of this name, with its draft. Raises the errors of `load_engine`."""
        drafting = {key: getattr(self, key) for key in DRAFTING} if self.draft or self.skip_layers else {}
        return load_engine(name, **drafting, **self.options)

    def part(self, name: str) -> Engine:
        """Load the LM that a setting of a method names, with the same options but without a draft."""
        return load_engine(name, **self.options)

    def reward(self, name: str) -> Reward:
        """Load the reward of this name, with the same options."""
        return load_reward(name, **self.options)

    @property
    def options(self) -> dict[str, Any]:
        """The options that all loaders accept, without those at their defaults."""
        given = {item.name: getattr(self, item.name) for item in fields(self) if getattr(self, item.name) != item.default}
        return {name: value for name, value in given.items() if name not in DRAFTING}

    @property
    def record(self) -> dict[str, Any]:
        """The options that can change a response, for the headers of files."""
        drafting = {name: getattr(self, name) for name in DRAFTING} if self.draft or self.skip_layers else {}
        return {"dtype": self.dtype, "context": self.context, **drafting}
