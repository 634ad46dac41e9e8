"""Write the README.md of each model folder, with the figures of report.json."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from card_texts import DATA, FORM, LIMITS, TEXTS
from common import DEFAULT_OUT, ROOT, read_json

Report = dict[str, Any]
PARTS = ("prefix_0.25", "prefix_0.5", "prefix_0.75", "reply_without_eos", "reply_part")


def wrap(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False)


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def language_table(report: Report) -> str:
    sources = ("all", "self_dialogue", "multiwoz", "taskmaster4")
    rows = [(name, *(f"{figures[source]:.3f}" for source in sources)) for name, figures in report["language"].items()]
    title = "Bits per byte on permissively licensed validation dialogues (lower is better):"
    return f"{title}\n\n" + table(("model", *sources), rows)


def spread_rows(report: Report, judge: str) -> str:
    names = ("mean", "sd", "q50", "q75", "q90", "q95", "q99")
    rows = [(name, *(f"{figures[judge][key]:.2f}" for key in names)) for name, figures in report["samples"].items()]
    return table((f"{judge} on responses of", *names), rows)


def reward_table(report: Report, role: str) -> str:
    rows = []
    for source, forms in report[role].items():
        own = forms["reply"]
        rows.append(
            (
                source,
                f"{own['accuracy']:.3f}",
                f"{own['balanced']:.3f}" if "balanced" in own else "",
                f"{own['auc']:.3f}" if "auc" in own else "",
                f"{own['threshold']:.2f}" if "threshold" in own else "",
                f"{forms['bare']['accuracy']:.3f}" if "bare" in forms else "",
                " / ".join(f"{forms[name]['accuracy']:.3f}" for name in PARTS),
            )
        )
    head = ("dev rows", "accuracy", "balanced", "AUC", "threshold", "bare text", "parts")
    text = (
        "Accuracy on dev rows, as a response with its end-of-text unless stated otherwise. Thresholds come from unseen rows\n"
        "of the train files. Parts, on 300 rows: 25% / 50% / 75% of the text / no end-of-text / all of it.\n\n"
    )
    drawn = "Rewards of responses to held-out prompts, at temperature 0.7, top-k 40, at most 64 tokens:"
    return f"{text}{table(head, rows)}\n\n{drawn}\n\n"


def agreement_lines(report: Report) -> str:
    rows = [(name.replace("_", " "), f"{value:.3f}") for name, value in report["agreement"].items()]
    return "Agreement of `rm` and `gold`:\n\n" + table(("measure", "value"), rows)


def tuned_lines(report: Report) -> str:
    rows = []
    for name, figures in report["samples"].items():
        apart = figures.get("kl_nats_per_reply")
        tokens, ended = f"{figures['tokens']:.1f}", f"{figures['ended']:.3f}"
        means = (f"{figures['rm']['mean']:.2f}", f"{figures['gold']['mean']:.2f}")
        rows.append((name, *means, tokens, ended, f"{figures['distinct_replies']:.2f}", f"{apart:.2f}" if apart else "0"))
    head = ("model", "mean rm", "mean gold", "tokens", "ended", "distinct", "KL to lm, nats per response")
    return table(head, rows)


def draft_lines(report: Report) -> str:
    figures = report["draft"]
    return (
        f"Probability that speculative sampling at temperature 1 accepts a drafted token: {figures['accepted']:.3f}; "
        f"same most likely token: {figures['same_best_token']:.3f}."
    )


FIGURES: dict[str, Callable[[Report], str]] = {
    "tokenizer": lambda report: "",
    "lm": language_table,
    "draft": lambda report: language_table(report) + "\n\n" + draft_lines(report),
    "aligned": lambda report: tuned_lines(report) + "\n\n" + language_table(report),
    "rm": lambda report: reward_table(report, "rm") + spread_rows(report, "rm") + "\n\n" + agreement_lines(report),
    "gold": lambda report: reward_table(report, "gold") + spread_rows(report, "gold") + "\n\n" + agreement_lines(report),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    args = parser.parse_args()
    report = read_json(ROOT / "training" / "report.json")
    for name, figures in FIGURES.items():
        if not (args.out / name).is_dir():
            continue
        text = TEXTS[name]
        size = sum(file.stat().st_size for file in (args.out / name).iterdir() if file.suffix != ".md") / 1e6
        parts = [f"# {name}", wrap(text.what), f"Size on disk: {size:.1f} MB.", "## Intended use", wrap(text.use)]
        parts += ["## Data", wrap(text.data), wrap(DATA), "## Training", wrap(text.training), wrap(FORM)]
        shown = figures(report)
        if shown:
            parts += ["## Figures", shown]
        parts += ["## Limits", wrap(f"{text.limits} {LIMITS}")]
        (args.out / name / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
