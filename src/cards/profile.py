"""Profiles: files with the settings of a method, which `cards calibrate` writes for a model and a reward."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from cards.errors import CardsError, SettingError, UnknownNameError, check, public_name
from cards.files import check_format
from cards.methods.base import Method
from cards.registry import make_method
from cards.rewards.weights import PartStatistics

FORMAT = 1  # format 0 has the same entries without a version
PACKAGED = Path(__file__).parent / "profiles"


def located(name: str | Path, folder: Path = Path()) -> Path:
    """Return the path of a profile: a file of the folder, or else a profile of this name that comes with the package."""
    path, packaged = folder / name, PACKAGED / f"{Path(name).name}.json"
    return packaged if packaged.is_file() and str(name) == packaged.stem and not path.exists() else path


@dataclass(frozen=True, slots=True)
class Profile:
    """A method and its settings for one model and one reward, with the origin of the settings. An empty name means any model.

    `settings` are keyword arguments for `make_method`: numbers, texts, booleans or None. They depend on `max_tokens`, because
    the threshold of CARDS rises over that many tokens. `parts` has the mean and the covariance of the parts of a sum of
    rewards (see PartStatistics). `calibrated_on`, `wish`, `predicted` and `measured` are information.
    `doubts` say why the trial of these settings does not confirm them.
    """

    model: str
    reward: str
    settings: dict[str, Any]
    method: str = "cards"
    max_tokens: int = 128
    mix: str = ""  # the mixture that replaces the LM, as for --mix
    created: str = ""  # ISO 8601
    calibrated_on: dict[str, Any] = field(default_factory=dict)
    wish: dict[str, Any] = field(default_factory=dict)
    predicted: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)

    def warnings(self, max_tokens: int | None) -> list[str]:
        """Return what to know before use: the settings are not confirmed, or were found for another token limit."""
        found = [f"The settings of the profile are not confirmed: {doubt}." for doubt in self.doubts]
        if self.model and max_tokens not in (None, self.max_tokens):
            found.append(
                f"The profile was made for at most {self.max_tokens} tokens, over which its threshold rises, but max_tokens is "
                f"{max_tokens}: make another profile, or leave --max-tokens out."
            )
        return found

    def make(self) -> Method:
        """Return the method with these settings. Raises UnknownNameError or SettingError."""
        return make_method(self.method, **self.settings)

    @property
    def statistics(self) -> PartStatistics | None:
        """Return the statistics of the parts of the reward, if they are known. Raises SettingError or TypeError."""
        if not self.parts:
            return None
        check(self.parts.keys() == {"mean", "covariance"}, "parts must have a mean and a covariance.")
        return PartStatistics(tuple(self.parts["mean"]), tuple(map(tuple, self.parts["covariance"])))

    def check_models(self, model: str, reward: str | None, mix: str | None = None) -> None:
        """Raise SettingError if the profile belongs to other models. Rewards have no common scale."""
        check(
            not self.model or self.mix == (mix or ""),
            f"The profile is valid only for the mixture {self.mix or 'none'!r}, got {mix or 'none'!r}: make another profile "
            "with `cards calibrate`.",
        )
        for kind, expected, given in (("model", self.model, model), ("reward", self.reward, reward)):
            check(
                not expected or (given is not None and expected == public_name(given)),
                f"The profile is valid only for the {kind} {expected!r}, got {given!r}: omit --{kind}, or make a profile for "
                f"{given!r} with `cards calibrate`.",
            )

    @classmethod
    def read(cls, path: Path) -> Profile:
        """Read a profile from a JSON file, or one that comes with the package. Raises SettingError or UnknownNameError."""
        path = located(path)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingError(
                f"The profile {str(path)!r} cannot be read: {error.strerror}. `cards calibrate` writes one."
            ) from error
        except ValueError as error:
            raise SettingError(f"The profile {str(path)!r} is not valid JSON: {error}.") from error
        known, needed = get_type_hints(cls), ("model", "reward", "settings")
        check(
            isinstance(found, dict) and all(name in found for name in needed),
            f"The profile {str(path)!r} must be a JSON object with {', '.join(needed)}. `cards calibrate` writes one.",
        )
        check_format(path, found.pop("format", 0), FORMAT, "make a new profile with `cards calibrate`")
        for name, value in found.items():
            if name not in known:
                raise UnknownNameError(f"entry of the profile {str(path)!r}:", name, (item.name for item in fields(cls)))
            kind = get_origin(known[name]) or known[name]
            check(type(value) is kind, f"{name} in the profile {str(path)!r} must be of type {kind.__name__}, got {value!r}.")
        profile = cls(**found)
        check(profile.max_tokens >= 1, f"max_tokens in the profile {str(path)!r} must be at least 1, got {profile.max_tokens}.")
        try:
            profile.make()
            _ = profile.statistics
        except (CardsError, TypeError) as error:
            raise SettingError(f"The settings in the profile {str(path)!r} are invalid: {error}") from error
        return profile

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-ready dict, with the version of the format."""
        return {"format": FORMAT, **asdict(self)}

    def write(self, path: Path) -> None:
        """Write the profile as JSON. Raises SettingError if the file cannot be written."""
        try:
            path.write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise SettingError(f"The profile cannot be written to {str(path)!r}: {error.strerror}.") from error
