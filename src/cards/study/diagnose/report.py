"""A diagnosis as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cards.study.diagnose.run import Measurements
from cards.study.diagnose.verdict import LIMITS, DiagnosisVerdict


def to_dict(found: Measurements, judged: DiagnosisVerdict) -> dict[str, Any]:
    """Return the measurements, and the verdict with the limits that led to it."""
    findings = [{**asdict(finding), "limits": LIMITS[finding.name], "grade": finding.grade} for finding in judged.findings]
    return {"verdict": judged.grade, "words": judged.words, "findings": findings, "figures": asdict(found)}
