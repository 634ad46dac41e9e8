"""The report of a calibration, as JSON and as a profile."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from cards.profile import Profile
from cards.study.calibrate.choose import Constraints, rates
from cards.study.calibrate.predict import Row
from cards.study.calibrate.run import Calibration, CalibrationResult
from cards.study.statistics import Estimate

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def rewards_by_length(plain: Sequence[Row]) -> list[Row]:
    """Return the rewards of plain responses by number of tokens (None: complete responses).

    Each row has the quantiles at LEVELS, and the correlation with the rewards of complete responses.
    """
    import numpy as np

    by_length: dict[int | None, list[tuple[float, float]]] = {}
    for row in plain:
        for prefixes, final in zip(row["prefixes"], row["rewards"], strict=True):
            for length, reward in prefixes:
                by_length.setdefault(length, []).append((reward, final))
            by_length.setdefault(None, []).append((final, final))
    result = []
    for length in sorted(by_length, key=lambda key: (key is None, key or 0)):
        rewards, finals = np.array(by_length[length]).T
        varies = len(rewards) > 2 and rewards.std() > 0 and finals.std() > 0
        correlation = float(np.corrcoef(rewards, finals)[0, 1]) if varies else None
        result.append({"tokens": length, "texts": len(rewards), "quantiles": quantiles(rewards), "correlation": correlation})
    return result


def entropies(plain: Sequence[Row]) -> list[float]:
    """Return the quantiles, at LEVELS, of the entropies (nats) before the tokens of plain responses; empty if unknown."""
    return quantiles([entropy for row in plain for response in row["entropies"] for entropy in response])


def quantiles(values: Iterable[float]) -> list[float]:
    import numpy as np

    values = np.array(list(values))
    return [float(q) for q in np.quantile(values, LEVELS)] if len(values) else []


def predictions(result: CalibrationResult) -> list[Row]:
    """Return each setting of the grid with its predicted rates."""
    means = rates(result.figures.mean(1))
    return [
        {**result.grid.settings(index), **{name: float(value[index]) for name, value in means.items()}}
        for index in range(len(result.grid))
    ]


def profile_of(
    calibration: Calibration, result: CalibrationResult, constraints: Constraints, prompts: str, model: str, reward: str
) -> Profile:
    """Return the profile: the settings for other commands, with the rates to expect."""
    last = result.probes[-1] if result.probes else None
    is_measured = last is not None and last.settings == result.settings
    return Profile(
        model=model,
        reward=reward,
        settings=result.settings,
        max_tokens=calibration.plan.max_tokens,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        calibrated_on={
            "prompts": prompts,
            "number": len(calibration.records),
            "form": calibration.form,
            "seed": calibration.plan.seed,
        },
        wish={name: value for name, value in asdict(constraints).items() if value is not None},
        predicted=_plain(result.choice.rates) | {"target": asdict(result.target)},
        measured=_plain(last.measured) if is_measured and last else {},
    )


def to_dict(result: CalibrationResult, profile: Profile) -> dict[str, Any]:
    """Return the complete report in JSON types."""
    return {
        "profile": profile.to_dict(),
        "levels": LEVELS,
        "rewards": rewards_by_length(result.responses),
        "entropies": entropies(result.responses),
        "entropy_thresholds": [asdict(option) for option in result.options],
        "probes": [
            {"settings": probe.settings, "predicted": _plain(probe.predicted), "measured": _plain(probe.measured)}
            for probe in result.probes
        ],
        "predictions": predictions(result),
    }


def _plain(estimates: dict[str, Estimate]) -> dict[str, Any]:
    return {name: asdict(value) for name, value in estimates.items()}
