"""The report of a diagnosis, as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cards.study.diagnose.run import Measurements
from cards.study.diagnose.verdict import LIMITS, DiagnosisVerdict


def to_dict(measurements: Measurements, verdict: DiagnosisVerdict) -> dict[str, Any]:
    """Return the measurements and the verdict, with the limits that it is based on."""
    findings = [{**asdict(finding), "limits": LIMITS[finding.name], "grade": finding.grade} for finding in verdict.findings]
    return {"verdict": verdict.grade, "words": verdict.words, "findings": findings, "figures": asdict(measurements)}
