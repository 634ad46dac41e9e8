"""Compare methods at equal compute: interpolated gold rewards, and the lead of one method over the others.

    cards bench --plan benchmarks/embedded.toml --out benchmarks/results/embedded.jsonl
    python benchmarks/equal_compute.py benchmarks/results/embedded.jsonl

A method with several budgets is a line through (mean FLOPs, mean gold reward), interpolated linearly in log FLOPs.
Intervals are 95% bootstrap intervals over prompts; all methods share the resamples.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cards.study.journal import Journal

SAMPLES = 2000
Line = tuple[NDArray[np.float64], NDArray[np.float64]]  # FLOPs and gold, each [budgets, prompts]


def lines_of(results: Journal, grade: str = "gold") -> dict[str, Line]:
    """Return the lines of methods with at least two budgets, averaged over seeds. `grade` is a field of the rows."""
    prompts = sorted({row["id"] for row in results.rows})
    cells: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for row in results.rows:
        by_prompt = cells.setdefault((row["line"], row["label"]), {})
        by_prompt.setdefault(row["id"], []).append((row["usage"]["flops"], row[grade]))
    found: dict[str, list[NDArray[np.float64]]] = {}
    for (line, _), by_prompt in cells.items():
        found.setdefault(line, []).append(np.array([np.mean(by_prompt[p], axis=0) for p in prompts]))
    lines = {line: np.array(points) for line, points in found.items() if len(points) > 1}
    return {line: (points[..., 0], points[..., 1]) for line, points in lines.items()}


def at(line: Line, budgets: NDArray[np.float64], chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the gold reward [budgets] for these prompts; NaN outside the range of mean FLOPs over all prompts."""
    flops, gold = (part[:, chosen].mean(1) for part in line)
    ends = line[0].mean(1)
    order = flops.argsort()
    found = np.interp(np.log(budgets), np.log(flops[order]), gold[order])
    return np.where((budgets < ends.min()) | (budgets > ends.max()), np.nan, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--line", default=None, help="Method to compare the others with. Default: the first line of cards.")
    parser.add_argument("--grade", choices=("gold", "reward"), default="gold", help="Reward to compare.")
    parser.add_argument("--mflops", type=float, nargs="+", default=[1000, 1500, 2000, 3000, 4000])
    args = parser.parse_args()
    lines = lines_of(Journal.load(args.results), args.grade)
    reference = args.line or next(line for line in lines if line.startswith("cards"))
    budgets = np.array(args.mflops) * 1e6
    count = next(iter(lines.values()))[0].shape[1]
    draws = np.random.default_rng(0).integers(0, count, (SAMPLES, count))
    everyone = np.arange(count)

    def sampled(line: Line) -> NDArray[np.float64]:
        return np.array([at(line, budgets, draw) for draw in draws])

    def cells(mean: NDArray[np.float64], samples: NDArray[np.float64]) -> list[str]:
        low, high = np.nanquantile(samples, [0.025, 0.975], axis=0) if len(samples) else (mean, mean)
        return ["" if np.isnan(m) else f"{m:.2f} [{a:.2f}, {b:.2f}]" for m, a, b in zip(mean, low, high, strict=True)]

    own, own_samples = at(lines[reference], budgets, everyone), sampled(lines[reference])
    header = [f"{args.grade if args.grade == 'gold' else 'steering'} reward at", *(f"{m:g} MFLOPs" for m in args.mflops)]
    table, ahead = [], []
    for name, line in lines.items():
        mean, samples = at(line, budgets, everyone), sampled(line)
        table.append([name, *cells(mean, samples)])
        if name != reference:
            ahead.append([name, *cells(own - mean, own_samples - samples)])
    for title, rows in (("", table), (f"`{reference}` is ahead by", ahead)):
        top = [title or header[0], *header[1:]]
        print("\n".join("| " + " | ".join(r) + " |" for r in [top, ["---"] * len(top), *rows]), end="\n\n")


if __name__ == "__main__":
    main()
