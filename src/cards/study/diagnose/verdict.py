"""The verdict of a diagnosis: findings in words, graded by fixed limits, and the reports as tables and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cards.study.diagnose.run import POSITIONS, Measurements
from cards.study.tables import NONE, Table, interval

Grade = Literal["good", "fair", "poor", "not enough data"]
GRADES: tuple[Grade, ...] = ("good", "fair", "poor")  # from best to worst
UNKNOWN: Grade = "not enough data"
LIMITS = {  # for good and for fair; if the first is larger, higher values are better
    "prefixes": (0.6, 0.3),
    "length": (0.3, 0.6),
    "repetition": (0.1, 0.5),
    "batch": (0.01, 0.1),
    "padding": (0.01, 0.1),
    "template": (0.8, 0.5),
    "preferences": (0.6, 0.55),
    "hacking": (0.25, 0.4),
}
SUMMARY: dict[Grade, str] = {
    "good": "Fit for segments.",
    "fair": "Usable for segments, with care.",
    "poor": "Not fit for segments: use complete responses (best-of-n) or another reward.",
    UNKNOWN: "Not enough data to tell whether the reward is fit for segments: give more prompts, or raise --max-tokens.",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding on one of LIMITS. Without a value there is not enough data to grade it."""

    name: str
    value: float | None
    words: str

    @property
    def grade(self) -> Grade:
        good, fair = LIMITS[self.name]
        if self.value is None:
            return UNKNOWN
        sign = 1 if good > fair else -1
        return "good" if sign * self.value >= sign * good else "fair" if sign * self.value >= sign * fair else "poor"


@dataclass(frozen=True, slots=True)
class DiagnosisVerdict:
    """The findings. The overall grade is that of the worst finding with a value, if incomplete responses have one."""

    findings: list[Finding]

    @property
    def grade(self) -> Grade:
        grades = {finding.name: finding.grade for finding in self.findings}
        known = [grade for grade in grades.values() if grade != UNKNOWN]
        worst = max(known, key=GRADES.index, default=UNKNOWN)
        undecided = UNKNOWN in (grades.get("prefixes"), grades.get("preferences"))
        return UNKNOWN if undecided and worst != "poor" else worst

    @property
    def words(self) -> str:
        causes = [finding.words for finding in self.findings if finding.grade == self.grade]
        return " ".join([SUMMARY[self.grade], *causes]) if self.grade != "good" else SUMMARY["good"]


def verdict(measurements: Measurements) -> DiagnosisVerdict:
    """Return one finding for each measured quantity."""
    findings: list[Finding] = []

    def add(name: str, value: float | None, words: str) -> None:
        findings.append(Finding(name, value, words))

    if measurements.answers:
        rule = "entropy" if measurements.prefixes["entropy"]["all"]["spearman"] else "fixed"
        if estimate := measurements.prefixes[rule]["all"]["spearman"]:
            words = (
                f"Rewards of incomplete responses (cut by {rule}) correlate with those of complete ones at "
                f"{estimate.mean:.2f} (ranks)."
            )
        elif measurements.cuts:
            words = "Rewards of incomplete responses do not predict those of complete ones: one of the two does not vary."
        else:
            words = "No response was long enough to be cut."
        add("prefixes", estimate.mean if estimate else 0.0 if measurements.cuts else None, words)
        if estimate := measurements.length:
            words = f"The correlation of reward and length within prompts is {estimate.mean:+.2f}."
            add("length", abs(estimate.mean), words)
        if estimate := measurements.repetition:
            add("repetition", estimate.mean, f"Repeating a response changes its reward by {estimate.mean:+.2f} deviations.")
        for name in ("batch", "padding"):
            drift = measurements.drift[name]
            add(name, drift, f"The reward of the same text changes by up to {drift:.2g} deviations with the {name}.")
        if estimate := measurements.template:
            add("template", estimate.mean, f"Rewards with and without the chat template correlate at {estimate.mean:.2f}.")
    if measurements.preferences:
        half = measurements.preferences["50%"].mean
        add("preferences", half, f"The first half of both responses identifies the better one in {half:.0%} of the pairs.")
    if estimate := measurements.hacked:
        words = f"In {estimate.mean:.0%} of the prompts the gold reward of the highest-reward response is below average."
        add("hacking", estimate.mean, words)
    return DiagnosisVerdict(findings)


def tables(measurements: Measurements, judged: DiagnosisVerdict) -> Iterator[Table]:
    """Yield tables of the measurements and of the findings."""
    if measurements.prefixes:
        title = "rank correlation of the rewards of incomplete and complete responses, within prompts"
        rows = [
            [rule, *(interval(positions[name]["spearman"]) for name in ("all", *POSITIONS))]
            for rule, positions in measurements.prefixes.items()
        ]
        yield Table(title, ["boundary", "all", *POSITIONS], rows)
    if measurements.preferences:
        values = list(map(interval, measurements.preferences.values()))
        yield Table("accuracy on preference pairs, by part of the responses", list(measurements.preferences), [values])
    rows = []
    for finding in judged.findings:
        good, fair = LIMITS[finding.name]
        sign = "\N{GREATER-THAN OR EQUAL TO}" if good > fair else "\N{LESS-THAN OR EQUAL TO}"
        value = NONE if finding.value is None else f"{finding.value:.2g}"
        rows.append([finding.name, value, f"{sign} {good:g}", f"{sign} {fair:g}", finding.grade])
    yield Table("findings", ["check", "value", "good", "fair", "grade"], rows)


def to_dict(measurements: Measurements, judged: DiagnosisVerdict) -> dict[str, Any]:
    """Return the measurements and the verdict, with the limits that it is based on."""
    findings = [{**asdict(finding), "limits": LIMITS[finding.name], "grade": finding.grade} for finding in judged.findings]
    return {"verdict": judged.grade, "words": judged.words, "findings": findings, "figures": asdict(measurements)}
