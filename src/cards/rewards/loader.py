"""Rewards by name: built-in kinds, plug-ins (entry points `cards.rewards`) and reward models."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import cards.rewards
from cards.engines.loader import LOCAL, Backend, Checked, backend, check_engine, options_for
from cards.errors import MismatchError, SettingError, UnknownNameError, check
from cards.plugins import is_class, plugins
from cards.rewards.base import Reward
from cards.rewards.combine import WeightedSum
from cards.rewards.function import FunctionReward
from cards.rewards.options import MODEL_OPTIONS, Texts, joined, options_of, read_options, split_options


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
    """Load a reward by the name of a model, by `kind:details`, from a file (`file.py:function`), or as a sum (`tiny+json`).

    Model names are as for engines, and options are those of the back end. Options of the reward itself can also be part of the
    name (`tiny?target=2&output=0`), except for addresses and kinds with free text. The target of a sum is the sum of the
    targets. Raises UnknownNameError, ModelError or SettingError.
    """
    if len(parts := summands(name)) > 1:
        return WeightedSum.of([load_reward(part, **options) for part in parts])
    owner, rest, given = _parse(name, options)
    if owner is None:
        path, _, function = rest.rpartition(":")
        return from_file(path or rest, function if path else "", given)
    if isinstance(owner, type):
        return owner.named(rest, **given)
    return cast(Reward, owner.load_reward(rest, **given))


def check_reward(name: str, **options: Any) -> list[Checked]:
    """Check the models of a reward without their weights, with the arguments and errors of `load_reward`."""
    if len(parts := summands(name)) > 1:
        return [found for part in parts for found in check_reward(part, **options)]
    owner, rest, given = _parse(name, options)
    if owner is None:
        check(Path(rest.rpartition(":")[0] or rest).is_file(), f"The reward file must exist, got {rest!r}.")
        return []
    if isinstance(owner, type):
        checks = {"engine": check_engine, "reward": check_reward}
        models = [found for model, role in owner.models_in(rest) for found in checks[role](model, **options)]
        for one, other in pairwise(models if owner.one_tokenizer else ()):
            if type(one) is type(other) and not one.shares_tokenizer(other):
                raise MismatchError(f"The models of the reward {name!r} have different tokenizers. Choose others.")
        return models
    check_model: Callable[..., list[Checked]] | None = getattr(owner, "check_reward", None)
    return check_model(rest, **given) if check_model is not None else []


def _parse(name: str, options: dict[str, Any]) -> tuple[type[Reward] | Backend | None, str, dict[str, Any]]:
    """Return what makes a reward (a class, a back end, or None for a file), the rest of its name, and all of its options."""
    cls = reward_classes().get(name.partition(":")[0]) if ":" in name else None
    texts: Texts = {}
    if not ("://" in name or (cls is not None and cls.literal)):
        name, texts = split_options(name)
    if name.endswith(".py") or name.rpartition(":")[0].endswith(".py"):
        return None, name, dict(texts)
    kind, colon, details = name.partition(":")
    if (cls := reward_classes().get(kind)) is not None:
        known = options_of(cls.__init__, cls.named)
        if cls.wraps:  # the other options are those of the inner reward
            details = joined(details, {key: text for key, text in texts.items() if key not in known})
            texts = {key: text for key, text in texts.items() if key in known}
        return cls, details, _merged(options, read_options(texts, known, name))
    found = backend(name)
    if colon and found is LOCAL and not Path(name).exists():
        raise UnknownNameError("kind of reward", kind, reward_classes(), "A name without a colon is the name of a model.")
    return found, name, options_for(found, _merged(options, read_options(texts, MODEL_OPTIONS, name)))


def _merged(options: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
    twice = options.keys() & named.keys()
    check(not twice, f"{', '.join(sorted(twice))} must be given once: in the name of the reward or as an argument.")
    return options | named


def summands(name: str) -> list[str]:
    """Return the names joined by +. After the name of a kind with free text, such as `regex:`, only ` + ` joins."""
    parts: list[str] = []
    for piece in name.split(" + "):
        rest = piece.strip()
        while "+" in rest and not _is_whole(rest):
            head, _, rest = (part.strip() for part in rest.partition("+"))
            parts.append(head)
        parts.append(rest)
    return parts


def _is_whole(name: str) -> bool:
    """Return whether a + in the name is part of it: in an address, in free text, or in the path of a file."""
    kind = reward_classes().get(name.partition(":")[0])
    paths = [path for path in (name, name.rpartition(":")[0]) if path]
    return "://" in name or (kind is not None and kind.literal) or any(Path(path).exists() for path in paths)


def from_file(path: str, function: str, texts: Texts) -> Reward:
    """Return the reward `function` of a Python file: a function of (prompt, response), or an instance of Reward.

    `texts` are options of FunctionReward. Raises SettingError if the file cannot be imported, UnknownNameError if it has no
    such function.
    """
    check(Path(path).is_file(), f"The reward file must exist, got {path!r}.")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise SettingError(f"The reward file {path!r} is not a Python module.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise SettingError(f"The reward file {path!r} cannot be imported. {type(error).__name__}: {error}") from error
    own = {key: value for key, value in vars(module).items() if not key.startswith("_") and _is_reward(value, module.__name__)}
    if function not in own:
        raise UnknownNameError("function", function, own, f"Name a function of the reward file: {path}:FUNCTION.")
    found = own[function]
    known = {} if isinstance(found, Reward) else options_of(FunctionReward.__init__)
    given = read_options(texts, known, f"{path}:{function}")
    return found if isinstance(found, Reward) else FunctionReward(found, name=f"{path}:{function}", **given)


def _is_reward(value: Any, module: str) -> bool:
    """Return whether a value of a reward file is a reward, or a function that the file defines."""
    return isinstance(value, Reward) or (inspect.isfunction(value) and value.__module__ == module)
