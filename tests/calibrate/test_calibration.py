"""A calibration from end to end: repeatable, resumable, honest about what it tried."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.mock_calibration import calibration

from cards.errors import SettingError
from cards.profile import Profile
from cards.rewards import FunctionReward, WeightedSum
from cards.study.calibrate.plan import CalibrationRequest, Constraints
from cards.study.calibrate.report import profile_of, to_dict
from cards.study.calibrate.run import CalibrationResult

pytestmark = pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
ASKED = CalibrationRequest(entropy_threshold=1.2)


async def run(
    folder: Path, max_cost: float = 2.5, asked: CalibrationRequest = ASKED
) -> tuple[CalibrationResult, dict[str, object]]:
    work = calibration(folder, 6, answers=8, nodes=3)
    constraints = Constraints(max_cost=max_cost)
    found = await work.run(constraints, asked)
    profile = profile_of(work, found, constraints, "here", "lm", "rm")
    return found, json.loads(json.dumps(to_dict(found, profile)))


async def test_a_second_run_draws_nothing_and_finds_the_same(tmp_path: Path) -> None:
    first, _ = await run(tmp_path)
    written = (tmp_path / "p.samples.jsonl").read_text()
    again, _ = await run(tmp_path)
    assert (tmp_path / "p.samples.jsonl").read_text() == written
    assert again.settings == first.settings
    assert again.choice == first.choice


async def test_what_was_cut_short_is_gone_on_with(tmp_path: Path) -> None:
    whole, _ = await run(tmp_path)
    path = tmp_path / "p.samples.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) // 2]) + lines[-1][:20])
    gone_on, _ = await run(tmp_path)
    assert gone_on.settings == whole.settings
    assert kinds(path.read_text()) == kinds("".join(lines))


def kinds(text: str) -> list[tuple[str, int, int]]:
    """What there is: stage, prompt and number of plain tokens or levels; seconds differ."""
    rows = [json.loads(line) for line in text.splitlines()[1:]]
    return sorted((row["stage"], row["number"], len(row.get("levels", []))) for row in rows)


async def test_the_constraints_hold_for_predicted_and_measured_rates(tmp_path: Path) -> None:
    found, report = await run(tmp_path)
    assert found.choice.rates["cost"].mean <= 2.5
    assert found.probes[-1].settings == found.settings
    assert len(report["predictions"]) == len(found.grid)  # type: ignore[arg-type]
    assert report["profile"]["measured"]["cost"]["mean"] == found.probes[-1].measured["cost"].mean  # type: ignore[index]
    assert report["rewards"][-1]["tokens"] is None  # type: ignore[index]


async def test_more_reward_costs_more(tmp_path: Path) -> None:
    cheap, _ = await run(tmp_path)
    dear, _ = await run(tmp_path, max_cost=6)
    assert dear.choice.rates["reward"].mean > cheap.choice.rates["reward"].mean
    assert dear.probes[-1].measured["reward"].mean > cheap.probes[-1].measured["reward"].mean


async def test_fixed_settings_stay(tmp_path: Path) -> None:
    found, _ = await run(tmp_path, 9, CalibrationRequest(entropy_threshold=1.2, beta=0.4, alpha=0.5, probes=0))
    assert set(found.grid.alpha) == {0.5}
    assert found.settings.get("beta") in (None, 0.4)
    assert found.probes == []


async def test_other_samples_are_not_mixed_in(tmp_path: Path) -> None:
    await run(tmp_path)
    path = tmp_path / "p.samples.jsonl"
    path.write_text(path.read_text().replace('"made": "here"', '"made": "elsewhere"'))
    with pytest.raises(SettingError, match="elsewhere"):
        await run(tmp_path)


async def test_the_profile_has_the_statistics_of_the_parts_of_a_sum(tmp_path: Path) -> None:
    work = calibration(tmp_path, 4, answers=6, nodes=2)
    work.reward = WeightedSum([work.reward, FunctionReward(lambda p, r: float(len(r)), name="length")], [1.0, 0.1])
    found = await work.run(Constraints(max_cost=4.0), ASKED)
    profile = profile_of(work, found, Constraints(max_cost=4.0), "here", "lm", "rm")
    samples = np.array([scores for row in found.responses for scores in row["parts"]])
    assert samples @ [1.0, 0.1] == pytest.approx(np.concatenate([row["rewards"] for row in found.responses]))
    assert profile.statistics is not None
    assert profile.statistics.mean == pytest.approx(samples.mean(0))
    profile.write(tmp_path / "p.json")
    assert Profile.read(tmp_path / "p.json").statistics == profile.statistics
    (tmp_path / "other").mkdir()
    assert (await run(tmp_path / "other"))[1]["profile"]["parts"] == {}  # type: ignore[index]
