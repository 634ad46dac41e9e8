"""Write the tables and pictures of docs/real.md from benchmarks/results/real: `python benchmarks/real_tables.py`.

A table of the page is the text between `<!-- NAME -->` and `<!-- end -->`; NAME is a function below, with the plan it reads.
Intervals are 95% bootstrap intervals over prompts. All methods share the resamples.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cards.study.statistics import Estimate, bootstrap, with_interval
from equal_compute import Line, at
from real_study import RESULTS, read_rows
from workload import HERE

PAGE = HERE.parent / "docs" / "real.md"
TIMES = (2, 3, 4, 6, 8)  # budgets, in multiples of the mean cost of plain sampling
RESAMPLES = 2000
# Plans that answer prompts of another plan, which has their baselines, and what the names of their methods get.
BESIDE = {"methods": ("report", ""), "report-value": ("report", " by value")}
Rows = list[dict[str, str]]
Cells = list[list[str]]


@cache
def rows_of(plan: str) -> dict[str, Rows]:
    """Return the rows of each method of a plan and its repetitions, in the order of the results."""
    found: dict[str, Rows] = {}
    for path in [RESULTS / f"{plan}.csv.gz", *sorted(RESULTS.glob(f"{plan}.[1-9].csv.gz"))]:
        for row in read_rows(path):
            found.setdefault(row["label"], []).append(row)
    if found and plan in BESIDE:
        other, mark = BESIDE[plan]
        answered = {row["id"] for rows in found.values() for row in rows}
        others = {label: [row for row in rows if row["id"] in answered] for label, rows in rows_of(other).items()}
        marked = {label + mark: [row | {"line": row["line"] + mark} for row in rows] for label, rows in found.items()}
        return others | marked
    return found


@cache
def report_of(plan: str) -> dict[str, Any]:
    path = RESULTS / f"{plan}.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"methods": {}}
    return report


@dataclass(frozen=True)
class Paired:
    """Figures of a method, averaged over seeds for each prompt that both it and the baseline answered."""

    prompts: list[str]
    own: NDArray[np.float64]  # [prompts, fields]
    base: NDArray[np.float64]


def by_prompt(rows: Rows, fields: Sequence[str], group: str | None = None) -> dict[str, NDArray[np.float64]]:
    """Return the mean figures [fields] of each prompt."""
    cells: dict[str, list[list[float]]] = {}
    for row in rows:
        if group is None or row["group"] == group:
            cells.setdefault(row["id"], []).append([float(row[field]) for field in fields])
    return {prompt: np.mean(values, axis=0) for prompt, values in cells.items()}


def paired(rows: Rows, baseline: Rows, fields: Sequence[str], group: str | None = None) -> Paired:
    own, base = by_prompt(rows, fields, group), by_prompt(baseline, fields, group)
    prompts = sorted(set(own) & set(base))
    return Paired(prompts, np.array([own[p] for p in prompts]), np.array([base[p] for p in prompts]))


def mean_of(values: NDArray[np.float64]) -> Estimate:
    return with_interval(bootstrap(len(values), RESAMPLES) @ values, len(values))


def text_of(value: Estimate, digits: int = 2) -> str:
    return f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def at_matched_length(gain: NDArray[np.float64], longer: NDArray[np.float64]) -> Estimate:
    """Return the gain of responses of equal length: the intercept of a linear regression of gains on lengths."""
    weights = bootstrap(len(gain), RESAMPLES)
    x, y = weights @ longer, weights @ gain
    variance = weights @ longer**2 - x**2
    slope = np.divide(weights @ (longer * gain) - x * y, variance, out=np.zeros_like(x), where=variance > 1e-9)
    return with_interval(y - slope * x, len(gain))


def wins(rows: Rows, baseline: Rows) -> tuple[Estimate, Estimate]:
    """Return the share of responses with a higher grader reward than the baseline's of the same seed, and with ties."""
    base = {(row["id"], row["seed"]): float(row["gold"]) for row in baseline}
    ahead: dict[str, list[tuple[bool, bool]]] = {}
    for row in rows:
        other = base.get((row["id"], row["seed"]))
        if other is not None:
            ahead.setdefault(row["id"], []).append((float(row["gold"]) > other, float(row["gold"]) >= other))
    shares = np.array([np.mean(values, axis=0) for values in ahead.values()])
    return mean_of(shares[:, 0]), mean_of(shares[:, 1])


def text_of_share(value: Estimate) -> str:
    return f"{value.mean:.0%} [{100 * value.low:.0f}, {100 * value.high:.0f}]"


def markdown(header: Sequence[str], rows: Cells) -> str:
    """Return a table, or nothing if it has no rows."""
    if not rows:
        return ""
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(header), ["---"] * len(header), *rows])


def quality(plan: str) -> str:
    """Reward and grader reward, paired with plain sampling, also at matched length."""
    found = rows_of(plan)
    header = ["method", "reward", "grader", "grader wins", "wins or ties", "gain over plain sampling"]
    header += ["gain at equal length", "tokens", "cost"]
    plain = found.get("vanilla", [])
    rows: Cells = []
    for label, own in found.items():
        pair = paired(own, plain, ("reward", "gold", "tokens", "flops"))
        gain, longer = (pair.own - pair.base)[:, 1], (pair.own - pair.base)[:, 2]
        row = [label, *(text_of(mean_of(pair.own[:, i])) for i in (0, 1))]
        if label == "vanilla":
            row += ["", "", "", ""]
        else:
            row += [*map(text_of_share, wins(own, plain)), text_of(mean_of(gain)), text_of(at_matched_length(gain, longer))]
        cost = pair.own[:, 3].mean() / pair.base[:, 3].mean()
        rows.append([*row, f"{pair.own[:, 2].mean():.0f}", f"{cost:.1f}"])
    return markdown(header, rows)


def texts(plan: str) -> str:
    """Diversity, coherence and perplexity."""
    header = ["method", "distinct 1", "distinct 2", "repeated 4-grams", "coherence", "perplexity", "acceptance", "fallbacks"]
    names = ("distinct.1", "distinct.2", "repetition.4", "coherence", "perplexity", "acceptance", "fallback")
    rows = [[label, *(_number(own.get(name)) for name in names)] for label, own in report_of(plan)["methods"].items()]
    return markdown(header, rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def groups(plan: str) -> str:
    """Gains over plain sampling on the grader, for each group of prompts."""
    found = rows_of(plan)
    plain = found.get("vanilla", [])
    names = sorted({row["group"] for row in plain})
    rows: Cells = []
    for label, own in found.items():
        if label != "vanilla":
            pairs = [paired(own, plain, ("gold",), name) for name in names]
            rows.append([label, *(text_of(mean_of((pair.own - pair.base)[:, 0])) for pair in pairs)])
    return markdown(["gain on the grader", *names], rows)


def lines_of(plan: str, cost: str, grade: str) -> dict[str, Line]:
    """Return cost in multiples of plain sampling, and grade, each [budgets, prompts], for methods with several budgets.

    The seconds of a method are the time of its whole run over the number of responses, which share the time of a step.
    """
    found = rows_of(plan)
    if cost == "seconds":
        shared = {label: figures["seconds"] for label, figures in report_of(plan)["methods"].items()}
        found = {label: [row | {"seconds": str(shared[label])} for row in rows] for label, rows in found.items()}
    plain = by_prompt(found.get("vanilla", []), (cost,))
    if not plain:
        return {}
    unit = float(np.mean(list(plain.values())))
    prompts = sorted(plain)
    points: dict[str, list[NDArray[np.float64]]] = {}
    for rows in found.values():
        own = by_prompt(rows, (cost, grade))
        if set(own) == set(prompts):
            points.setdefault(rows[0]["line"], []).append(np.array([own[p] for p in prompts]))
    for line, values in points.items():
        single = re.sub(r"best-of-n:inner=\((.+)\)", r"\1", line)  # the best of one response is the response
        if single != line and single in points:
            values[:0] = points[single]
    stacked = {line: np.array(values) for line, values in points.items() if len(values) > 1}
    return {line: (values[..., 0] / unit, values[..., 1]) for line, values in stacked.items()}


def compute(plan: str, cost: str = "flops") -> str:
    """Grader reward at equal cost, and the lead of each method over best-of-n."""
    lines = lines_of(plan, cost, "gold")
    if "best-of-n" not in lines:
        return ""
    budgets, count = np.array(TIMES, dtype=float), lines["best-of-n"][0].shape[1]
    draws = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    everyone = np.arange(count)

    def curve(line: Line) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return at(line, budgets, everyone), np.array([at(line, budgets, draw) for draw in draws])

    base, base_samples = curve(lines["best-of-n"])
    levels: Cells = []
    ahead: Cells = []
    for name, line in lines.items():
        mean, samples = curve(line)
        levels.append([name, *("" if np.isnan(value) else f"{value:.2f}" for value in mean)])
        if name != "best-of-n":
            low, high = np.nanquantile(samples - base_samples, [0.025, 0.975], axis=0)
            lead = zip(mean - base, low, high, strict=True)
            ahead.append([name, *("" if np.isnan(m) else f"{m:+.2f} [{a:+.2f}, {b:+.2f}]" for m, a, b in lead)])
    named = [f"{times} times" for times in TIMES]
    tables = [markdown(["grader reward at", *named], levels), markdown(["lead over best-of-n at", *named], ahead)]
    return "\n\n".join(tables)


def seconds(plan: str) -> str:
    return compute(plan, "seconds")


def efficiency(plan: str) -> str:
    """Calls per response in the counts of the paper, and minutes for 100 responses."""
    header = ["method", "responses", "LM calls", "RM calls", "total", "tokens read by the RM", "minutes for 100 responses"]
    rows: Cells = []
    for name in (plan, f"{plan}-10", f"{plan}-3"):
        report = report_of(name)["methods"]
        for label, own in rows_of(name).items():
            drawn, calls, read = (
                float(np.mean([float(row[f]) for row in own])) for f in ("lm_decoded_tokens", "rm_calls", "rm_tokens")
            )
            minutes = report[label]["seconds"] * 100 / 60
            mark = "" if len(own) >= 100 else " (scaled)"
            rows.append(
                [
                    label,
                    str(len(own)),
                    f"{drawn:.0f}",
                    f"{calls:.1f}",
                    f"{drawn + calls:.0f}",
                    f"{read:.0f}",
                    f"{minutes:.1f}{mark}",
                ]
            )
    return markdown(header, rows)


def refusals(plan: str) -> str:
    """Share of responses that refuse, by their wording, for each group of prompts."""
    found = rows_of(plan)
    names = sorted({row["group"] for rows in found.values() for row in rows})
    rows: Cells = []
    for label, own in found.items():
        shares = [by_prompt(own, ("refused",), name) for name in names]
        rows.append([label, *(text_of_share(mean_of(np.array([v[0] for v in values.values()]))) for values in shares)])
    return markdown(["refusals", *(f"{name} prompts" for name in names)], rows)


def models(plan: str) -> str:
    """The models of the pair: what they were trained on, and their figures on held-out rows."""
    report = report_of(plan)
    header = ["model", "figure", "value"]
    rows = [
        [name, key.replace("_", " "), f"{value:.3f}" if isinstance(value, float) else str(value)]
        for name, figures in report.items()
        if isinstance(figures, dict) and name != "methods"
        for key, value in figures.items()
    ]
    return markdown(header, rows)


def prefixes(name: str) -> str:
    """Rank correlation within prompts of the rewards of incomplete and complete responses, for each rule that cuts them."""
    rules = report_of(name).get("figures", {}).get("prefixes", {})
    parts = ("all", "early", "middle", "late")
    rows = [[rule, *(text_of_interval(found[part]["spearman"]) for part in parts)] for rule, found in rules.items()]
    return markdown(["cut by", "all cuts", "first third", "second third", "last third"], rows)


def findings(name: str) -> str:
    """The findings of `cards diagnose` about the reward model. The grader is the gold reward."""
    return "\n".join(f"- {found['words']}" for found in report_of(name).get("findings", ()))


def text_of_interval(value: dict[str, float] | None) -> str:
    return text_of(Estimate(**value)) if value else ""


TABLES: Mapping[str, Callable[[str], str]] = {
    f.__name__: f for f in (quality, texts, groups, compute, seconds, efficiency, refusals, models, prefixes, findings)
}


def filled(page: str) -> str:
    """Return the page with its tables replaced by those of the results."""

    def one(match: re.Match[str]) -> str:
        function, plan = match["name"].split()
        return f"<!-- {match['name']} -->\n\n{TABLES[function](plan) or 'Not measured yet.'}\n\n<!-- end -->"

    return re.sub(r"<!-- (?P<name>\w+ [\w-]+) -->.*?<!-- end -->", one, page, flags=re.DOTALL)


def main() -> None:
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
