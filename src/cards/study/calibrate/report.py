"""The report of a calibration: as tables, as JSON and as a profile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from cards.profile import Profile
from cards.prompts import FormOptions
from cards.rewards.weights import PartStatistics
from cards.settings import settings_of
from cards.study.calibrate.choose import rates
from cards.study.calibrate.plan import Constraints
from cards.study.calibrate.run import Calibration, CalibrationResult
from cards.study.journal import Row
from cards.study.statistics import Estimate, interval_name
from cards.study.tables import Table, interval

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def rewards_by_length(plain: Sequence[Row]) -> list[Row]:
    """Return the rewards of plain responses by number of tokens (None: complete responses).

    Each row has the quantiles at LEVELS, and the correlation with the rewards of complete responses.
    """
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
    values = np.array(list(values))
    return [float(q) for q in np.quantile(values, LEVELS)] if len(values) else []


def predictions(result: CalibrationResult) -> list[Row]:
    """Return each setting of the grid with its predicted rates."""
    means = rates(result.figures.mean(1))
    return [
        {**result.grid.settings(index), **{name: float(value[index]) for name, value in means.items()}}
        for index in range(len(result.grid))
    ]


def headline(result: CalibrationResult) -> str:
    """Return the finding in one sentence, followed by the reasons to doubt it."""
    rated = result.choice.rates if result.trial is None else result.trial.measured
    chosen = result.settings
    named = ", ".join(f"{name} {chosen[name]:.3g}" for name in ("target", "beta", "alpha") if name in chosen)
    plain = round(float(np.mean([reward for row in result.responses for reward in row["rewards"]])), 2) + 0.0  # no -0.00
    known = "Predicted" if result.trial is None else "Confirmed" if result.confirmed else "Not confirmed"
    finding = (
        f"{known}: CARDS with {named} ({chosen.get('acceptance', 'soft')} test) gets a mean reward of "
        f"{rated['reward'].mean:.2f} at {rated['cost'].mean:.1f} times the cost of plain sampling, which gets {plain:.2f}."
    )
    return "\n".join([finding, *(f"{reason[0].upper()}{reason[1:]}." for reason in reasons(result))])


def tables(result: CalibrationResult) -> Iterator[Table]:
    """Yield tables of rewards, entropies, segment lengths, and the rates of each measured setting."""
    heads = [f"{level:.0%}" for level in LEVELS]
    rows = []
    for row in rewards_by_length(result.responses):
        correlation = "" if row["correlation"] is None or row["tokens"] is None else f"{row['correlation']:.2f}"
        values = [f"{q:.2f}" for q in row["quantiles"]]
        rows.append([str(row["tokens"] or "end"), str(row["texts"]), *values, correlation])
    columns = ["tokens", "responses", *heads, "correlation"]
    yield Table("rewards of plain responses by tokens so far, and their correlation with the final reward", columns, rows)
    if levels := entropies(result.responses):
        yield Table("entropy of the next token (nats)", heads, [[f"{q:.2f}" for q in levels]])
    rows = []
    for option in result.options:
        values = [f"{x:.1f}" for x in (option.tokens, *option.quartiles, option.segments)]
        rows.append([f"{option.threshold:.2f}", *values, "chosen" if option == result.lengths else ""])
    yield Table("segments by tau_u", ["tau_u", "mean tokens", "25%", "50%", "75%", "segments per response", ""], rows)
    rated = [(probe.settings, {"predicted": probe.predicted, "measured": probe.measured}) for probe in result.probes]
    for settings, figures in rated or [(result.settings, {"predicted": result.choice.rates})]:
        name = ", ".join(f"{key} {settings[key]}" for key in ("target", "beta", "acceptance", "alpha") if key in settings)
        rows = [[rate, *(_figure(rate, values[rate]) for values in figures.values())] for rate in result.choice.rates]
        yield Table(f"rates for {name} ({interval_name(len(result.responses))})", ["", *figures], rows)


def profile_of(
    calibration: Calibration,
    result: CalibrationResult,
    constraints: Constraints,
    prompts: str,
    model: str,
    reward: str,
    mix: str | None = None,
) -> Profile:
    """Return the profile: the settings for other commands, with the rates to expect."""
    choice = asdict(result.choice)
    return Profile(
        model=model,
        reward=reward,
        settings=result.settings,
        max_tokens=calibration.plan.max_tokens,
        mix=mix or "",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        calibrated_on={
            "prompts": prompts,
            "number": len(calibration.records),
            **{name: getattr(calibration.plan, name) for name in settings_of(FormOptions)},
            "seed": calibration.plan.seed,
        },
        wish={name: value for name, value in asdict(constraints).items() if value is not None},
        predicted=choice["rates"] | {"target": choice["target"]},
        measured=asdict(result.trial)["measured"] if result.trial else {},
        parts=_parts(result.responses),
        doubts=reasons(result),
    )


def reasons(result: CalibrationResult) -> list[str]:
    """Return why the chosen settings are not confirmed, and how many prompts would tell; empty if they are."""
    if result.trial is None:
        return ["the settings were not tried: set --probes to 1 or more"]
    prompts = len(result.responses)
    return [
        f"{doubt.words}; "
        + (
            f"about {doubt.prompts} prompts would tell ({prompts} were used)"
            if doubt.prompts
            else "more prompts will not change this"
        )
        for doubt in result.trial.doubts
    ]


def _parts(responses: Sequence[Row]) -> dict[str, Any]:
    """Return the statistics of the parts of a sum of rewards; empty for another reward."""
    samples = [scores for row in responses for scores in row.get("parts", ())]
    return asdict(PartStatistics.of(samples)) if samples else {}


def to_dict(result: CalibrationResult, profile: Profile) -> dict[str, Any]:
    """Return the complete report in JSON types."""
    return {
        "profile": profile.to_dict(),
        "confirmed": result.confirmed,
        "levels": LEVELS,
        "rewards": rewards_by_length(result.responses),
        "entropies": entropies(result.responses),
        "entropy_thresholds": [asdict(option) for option in result.options],
        "probes": [asdict(probe) for probe in result.probes],
        "predictions": predictions(result),
    }


def _figure(name: str, value: Estimate) -> str:
    if name in ("acceptance", "fallback"):
        return f"{value.mean:.0%} [{value.low:.0%}, {value.high:.0%}]"
    return interval(value)
