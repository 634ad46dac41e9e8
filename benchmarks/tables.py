"""Print the tables of the README from the results of speed.py and quality.py."""

from __future__ import annotations

import json
import statistics

from workload import HERE


def rows(header: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *lines])


def quality() -> str:
    report = json.loads((HERE / "results" / "quality.json").read_text())
    header = ["prompts", "method", "reward", "gold reward", "wins or ties on gold", "p (gold)", "tokens", "drawn", "read by RM"]
    lines = []
    for name, found in report["sets"].items():
        for method, row in found["rows"].items():
            p, wins = row.get("gold_p_wilcoxon"), row.get("gold_win_tie")
            cells = [f"{row[k]:.2f}" for k in ("reward", "gold")]
            cells += ["" if wins is None else f"{wins:.0%}", "" if p is None else f"{p:.1g}"]
            cells += [f"{row[k]:.0f}" for k in ("tokens", "lm_drawn", "rm_tokens")]
            lines.append([f"{name.split('.')[0]} ({found['prompts']})", method, *cells])
    return rows(header, lines)


def speed() -> str:
    reports = [json.loads(path.read_text()) for path in sorted((HERE / "results").glob("speed*.json"), reverse=True)]
    report = {"on": reports[0]["on"], "models": [model for r in reports for model in r["models"]]}
    arms = list(report["models"][0]["ms_per_kept_token"])
    times = [
        [arm, *(f"{statistics.median(m['ms_per_kept_token'].get(arm, [0])):.2f}" for m in report["models"])] for arm in arms
    ]
    ratios = [[name, *(f"{m['ratios'][name]:.2f}" for m in report["models"])] for name in report["models"][0]["ratios"]]
    models = [m["model"] for m in report["models"]]
    on = ", ".join(f"{k} {v}" for k, v in report["on"].items())
    return f"{on}\n\n{rows(['ms per kept token', *models], times)}\n\n{rows(['ratio', *models], ratios)}"


if __name__ == "__main__":
    print(quality(), speed(), sep="\n\n")
