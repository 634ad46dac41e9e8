"""`--profile`: take options that are not given from a profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from cards.console import show_warning
from cards.profile import Profile
from cards.settings import option_text
from cards.specs import join_spec, quote


def _fill(ctx: typer.Context, path: Path | None) -> Path | None:
    """Make the models, length and method of the profile the defaults of the command. Runs before other options are parsed."""
    if path is not None:
        profile = Profile.read(path)
        named = {"model": profile.model, "reward": profile.reward, "mix": profile.mix}
        defaults: dict[str, Any] = {option: name for option, name in named.items() if name} | {"max_tokens": profile.max_tokens}
        if any(option.name == "method" and not getattr(option, "multiple", False) for option in ctx.command.params):
            defaults["method"] = profile.method
        ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return path


PROFILE = typer.Option(
    "--profile",
    callback=_fill,
    is_eager=True,
    help="Profile written by `cards calibrate`, or `published` (the paper's settings of CARDS): defaults for method, settings "
    "and models.",
)


def profiled(
    path: Path | None,
    method: str,
    model: str,
    reward: str | None,
    mix: str | None,
    given: Mapping[str, str],
    max_tokens: int | None = None,
) -> Mapping[str, str]:
    """Return the settings of a method as text: those given, then those of the profile if it is for this method.

    Raises SettingError if the profile is for another model, reward or mixture, and warns if it is not for `max_tokens`.
    """
    if path is None or (profile := Profile.read(path)).method != method:
        return given
    profile.check_models(model, reward, mix)
    for text in profile.warnings(max_tokens):
        show_warning(text)
    return {key: option_text(value) for key, value in profile.settings.items()} | {**given}


def with_profile(
    path: Path | None, specs: Sequence[str], model: str, reward: str | None, mix: str | None, max_tokens: int
) -> Sequence[str]:
    """Return method specifications in which the method of the profile, if it has no settings, gets those of the profile.

    A missing method of the profile is appended. Raises SettingError if the profile is for another model, reward or mixture, and
    warns if it is not for `max_tokens`.
    """
    if path is None:
        return specs
    profile = Profile.read(path)
    profile.check_models(model, reward, mix)
    for text in profile.warnings(max_tokens):
        show_warning(text)
    spec = join_spec(profile.method, {key: quote(option_text(value)) for key, value in profile.settings.items()})
    named = [spec if given.strip() == profile.method else given for given in specs]
    return named if any(given.partition(":")[0].strip() == profile.method for given in named) else [*named, spec]
