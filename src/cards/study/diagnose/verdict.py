"""What the figures say, in words, and the limits that lead to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cards.study.diagnose.run import Measurements

Grade = Literal["good", "fair", "poor"]
GRADES: tuple[Grade, ...] = ("good", "fair", "poor")
LIMITS = {  # of good and of fair; where they fall, higher is better
    "prefixes": (0.6, 0.3),
    "length": (0.3, 0.6),
    "repetition": (0.1, 0.5),
    "batch": (0.01, 0.1),
    "padding": (0.01, 0.1),
    "template": (0.8, 0.5),
    "preferences": (0.6, 0.55),
    "hacking": (0.25, 0.4),
}
SUMMARY = {
    "good": "Fit for segments.",
    "fair": "Usable for segments, with care.",
    "poor": "Not fit for segments: choose whole answers (best-of-n), or another reward.",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One question of LIMITS and its answer; a value of None is poor."""

    name: str
    value: float | None
    words: str

    @property
    def grade(self) -> Grade:
        good, fair = LIMITS[self.name]
        if self.value is None:
            return "poor"
        sign = 1 if good > fair else -1
        return "good" if sign * self.value >= sign * good else "fair" if sign * self.value >= sign * fair else "poor"


@dataclass(frozen=True, slots=True)
class DiagnosisVerdict:
    """As good as the worst finding."""

    findings: list[Finding]

    @property
    def grade(self) -> Grade:
        return max((finding.grade for finding in self.findings), key=GRADES.index)

    @property
    def words(self) -> str:
        causes = [finding.words for finding in self.findings if finding.grade == self.grade]
        return " ".join([SUMMARY[self.grade], *causes]) if self.grade != "good" else SUMMARY["good"]


def verdict(found: Measurements) -> DiagnosisVerdict:
    """One finding for each figure that was measured."""
    findings: list[Finding] = []

    def judge(name: str, value: float | None, words: str) -> None:
        findings.append(Finding(name, value, words))

    if found.answers:
        rule = "entropy" if found.prefixes["entropy"]["all"]["spearman"] else "fixed"
        if at := found.prefixes[rule]["all"]["spearman"]:
            told = f"Rewards of incomplete answers (cut by {rule}) correlate with those of whole ones at {at.mean:.2f} (ranks)."
        else:
            told = "Rewards of incomplete answers say nothing about those of whole ones: one of the two does not vary."
        judge("prefixes", at.mean if at else None, told)
        length = found.length.mean if found.length else 0.0
        judge("length", abs(length), f"The correlation of reward and length within prompts is {length:+.2f}.")
        if at := found.repetition:
            judge("repetition", at.mean, f"To say an answer twice changes its reward by {at.mean:+.2f} deviations.")
        for name in ("batch", "padding"):
            drift = found.drift[name]
            judge(name, drift, f"The same text differs by up to {drift:.2g} deviations with the {name}.")
        if at := found.template:
            judge("template", at.mean, f"Rewards with and without the chat template correlate at {at.mean:.2f}.")
    if found.preferences:
        half = found.preferences["50%"].mean
        judge("preferences", half, f"Half of both answers is enough to tell the better one in {half:.0%} of the pairs.")
    if at := found.hacked:
        judge("hacking", at.mean, f"In {at.mean:.0%} of the prompts the answer of highest reward is below their gold average.")
    return DiagnosisVerdict(findings)
