"""The models of `cards serve`: entries of a configuration file, or one entry from the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cards.cli.profile import profiled
from cards.cli.settings import method_of
from cards.console import one_line_warnings, spinner, stderr_console
from cards.engines.base import Engine
from cards.errors import check
from cards.methods.base import Method
from cards.parts import Composite
from cards.placement import Placement, reward_for
from cards.profile import Profile
from cards.rewards.base import Reward
from cards.rewards.combine import WeightedSum
from cards.rewards.loader import summands
from cards.serve.config import ModelEntry
from cards.serve.errors import public
from cards.serve.service import Entry
from cards.serve.weights import ClientWeights
from cards.study.models import Models

T = TypeVar("T")


class LoadedModels(Composite):
    """Models by name, loaded once however many entries name them."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.engines: dict[str, Engine] = {}
        self.rewards: dict[str, Reward] = {}
        self.others: dict[tuple[str, str], Any] = {}  # models that settings name

    def choose(self, entries: Sequence[ModelEntry]) -> list[Chosen]:
        """Return the entries with their methods. Raises SettingError or UnknownNameError."""
        return [Chosen(entry, self.placement.mix) for entry in entries]

    def load(self, chosen: Sequence[Chosen], check_chats: Callable[[bool], None]) -> list[Entry]:
        """Check all models, then load each of them once. Raises the errors of loaders and SettingError."""
        with one_line_warnings(notes=True):
            with spinner(stderr_console(), "checking models"):
                found = [model for one in chosen for model in self.placement.check(one.names, [one.method], check_chats)]
            for model in found:
                model.fetch()
            with spinner(stderr_console(), "loading models"):
                return [self._entry(one, check_chats) for one in chosen]

    def _entry(self, chosen: Chosen, check_chats: Callable[[bool], None]) -> Entry:
        engine = self._once(self.engines, chosen.model, self.placement.load_engine)
        check_chats(engine.chats)
        reward = None if chosen.reward == "none" else self._reward(chosen.reward)
        if isinstance(reward, WeightedSum) and chosen.profile is not None:
            reward = WeightedSum(
                reward.rewards, reward.weights, target=reward.target, names=reward.names, statistics=chosen.profile.statistics
            )
        models = Models(engine, reward, None, self.placement, self.others)
        method = models.decoder(chosen.method).method
        self.parts = [*self.engines.values(), *self.rewards.values(), *self.others.values()]
        entry, default = chosen.entry, None if chosen.profile is None else chosen.profile.max_tokens
        weights = ClientWeights(reward, entry.weights) if entry.weights else None
        name, most = entry.name or public(engine.name), entry.max_tokens or default
        return Entry(name, engine, reward, method, entry.aliases, most, weights)

    def _reward(self, name: str) -> Reward:
        """Return a reward. The parts of sums are loaded once, too."""
        parts = [self._once(self.rewards, part, self.placement.load_reward) for part in summands(name)]
        return parts[0] if len(parts) == 1 else WeightedSum.of(parts)

    def _once(self, known: dict[str, T], name: str, load: Callable[[str], T]) -> T:
        if name not in known:
            known[name] = load(name)
        return known[name]


class Chosen:
    """An entry with the models, the method and the settings of its profile. Raises SettingError or UnknownNameError."""

    def __init__(self, entry: ModelEntry, mix: str | None) -> None:
        self.entry = entry
        self.profile = Profile.read(entry.profile) if entry.profile is not None else None
        profile = self.profile
        self.model = entry.model or (profile.model if profile else "") or "tiny"
        name = entry.method or (profile.method if profile else "cards")
        named = entry.reward or (profile.reward if profile else None) or None
        self.method: Method = method_of(name, profiled(entry.profile, name, self.model, named, mix, entry.settings))
        self.reward = reward_for(self.model, named, [self.method])
        check(
            profile is None or profile.statistics is None or len(profile.statistics.mean) == len(summands(self.reward)),
            f"The profile of {entry.name!r} is for another reward than {self.reward!r}. Calibrate this reward.",
        )

    @property
    def names(self) -> dict[str, str]:
        """The models by option, without those named `none`."""
        return {"--model": self.model} | ({} if self.reward == "none" else {"--reward": self.reward})
