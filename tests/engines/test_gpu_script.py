"""The script for GPUs runs on the CPU with very small models, and writes what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import gpu


@pytest.mark.slow
def test_each_part_runs_and_writes_its_results(tmp_path: Path) -> None:
    parts = ["steps-large", "methods", "profile", "reward"]
    gpu.main(["--tiny", "--out", str(tmp_path), "--parts", *parts])
    found = {part: json.loads((tmp_path / f"{part}.json").read_text()) for part in parts}
    assert found["steps-large"]["1 rows, 32 tokens"]["ratio"] > 0
    assert [name for name in found["steps-large"] if name.startswith("aim:")]
    assert found["methods"]["cards, 2 requests"]["drawn_per_kept_token"] >= 1
    assert found["reward"]["2 texts of 32 tokens"]["ms to read"] > 0


def test_the_parts_fit_into_ten_minutes() -> None:
    seconds = {part: seconds for part, (seconds, _) in gpu.PARTS.items()}
    assert list(seconds)[-1] == "vllm"  # rarely installed; it gets what is left
    assert sum(seconds.values()) - seconds["vllm"] <= gpu.TOTAL < 600
