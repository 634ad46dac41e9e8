"""A diagnosis for JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cards.study.diagnose.run import Figures
from cards.study.diagnose.verdict import LIMITS, Verdict


def to_dict(found: Figures, judged: Verdict) -> dict[str, Any]:
    """Figures, and the verdict with the limits that led to it."""
    findings = [{**asdict(finding), "limits": LIMITS[finding.name], "grade": finding.grade} for finding in judged.findings]
    return {"verdict": judged.grade, "words": judged.words, "findings": findings, "figures": asdict(found)}
