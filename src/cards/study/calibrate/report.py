"""A calibration as figures for JSON, and as a profile."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from cards.profile import Profile
from cards.study.calibrate.choose import rates
from cards.study.calibrate.predict import Row
from cards.study.calibrate.run import Calibration, CalibrationRequest, CalibrationResult
from cards.study.statistics import Estimate

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def rewards_by_length(answers: Sequence[Row]) -> list[Row]:
    """Rewards of plain answers after so many tokens (None: at their end): quantiles, and correlation with those at the end."""
    import numpy as np

    by_length: dict[int | None, list[tuple[float, float]]] = {}
    for row in answers:
        for prefixes, final in zip(row["prefixes"], row["rewards"], strict=True):
            for length, reward in prefixes:
                by_length.setdefault(length, []).append((reward, final))
            by_length.setdefault(None, []).append((final, final))
    found = []
    for length in sorted(by_length, key=lambda key: (key is None, key or 0)):
        rewards, finals = np.array(by_length[length]).T
        varies = len(rewards) > 2 and rewards.std() > 0 and finals.std() > 0
        correlation = float(np.corrcoef(rewards, finals)[0, 1]) if varies else None
        found.append({"tokens": length, "texts": len(rewards), "quantiles": quantiles(rewards), "correlation": correlation})
    return found


def entropies(answers: Sequence[Row]) -> list[float]:
    """Quantiles of the entropies (nats) before the tokens of plain answers, at LEVELS; empty where they are not known."""
    return quantiles([entropy for row in answers for answer in row["entropies"] for entropy in answer])


def quantiles(values: Iterable[float]) -> list[float]:
    import numpy as np

    values = np.array(list(values))
    return [float(q) for q in np.quantile(values, LEVELS)] if len(values) else []


def predictions(found: CalibrationResult) -> list[Row]:
    """Settings of the grid with their predicted rates."""
    means = rates(found.figures.mean(1))
    return [
        {**found.grid.settings(place), **{name: float(value[place]) for name, value in means.items()}}
        for place in range(len(found.grid))
    ]


def profile_of(
    calibration: Calibration, found: CalibrationResult, asked: CalibrationRequest, prompts: str, model: str, reward: str
) -> Profile:
    """What other commands read: the settings, and the figures to expect."""
    drawing, last = calibration.drawing, found.probes[-1] if found.probes else None
    tried = last is not None and last.settings == found.settings
    return Profile(
        model=model,
        reward=reward,
        settings=found.settings,
        max_tokens=drawing.max_tokens,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        calibrated_on={
            "prompts": prompts,
            "number": len(calibration.records),
            "form": calibration.form,
            "seed": drawing.seed,
        },
        wish={name: value for name, value in asdict(asked.wish).items() if value is not None},
        predicted=_plain(found.choice.rates) | {"target": asdict(found.target)},
        measured=_plain(last.measured) if tried and last else {},
    )


def to_dict(found: CalibrationResult, profile: Profile) -> dict[str, Any]:
    """The whole report, ready for JSON."""
    return {
        "profile": profile.to_dict(),
        "levels": LEVELS,
        "rewards": rewards_by_length(found.answers),
        "entropies": entropies(found.answers),
        "entropy_thresholds": [asdict(cut) for cut in found.cuts],
        "probes": [
            {"settings": probe.settings, "predicted": _plain(probe.predicted), "measured": _plain(probe.measured)}
            for probe in found.probes
        ],
        "predictions": predictions(found),
    }


def _plain(estimates: dict[str, Estimate]) -> dict[str, Any]:
    return {name: asdict(value) for name, value in estimates.items()}
