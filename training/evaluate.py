"""Evaluate every stored model on dev rows, write report.json and print a table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr

from common import DEFAULT_DATA, DEFAULT_OUT, DEFAULT_RUNS, ROOT, Job, Log, hash_unit, read_json, setup, write_json
from evaluate_lm import draft_figures, kl_figures, language_figures, ngram_figures
from gold_train import GOLD_SOURCES
from reward_data import PAIRED, load, train_items
from rm_score import FORMS, Scorer, pairs_of, source_figures
from rm_train import RM_SOURCES
from samples import load_scorer, replies_of, spread_of

JUDGED = ("goemotions", "diasafety", "imdb", "hh")
PREFIXES = (0.25, 0.5, 0.75)
PART = 300
PARTS = ("language", "ngram", "rm", "gold", "samples", "draft")
REPORT = ROOT / "training" / "report.json"


def reward_figures(data: Path, scorer: Scorer, role: str) -> dict[str, Any]:
    held = train_items(data, role, RM_SOURCES if role == "rm" else GOLD_SOURCES)[1]
    found: dict[str, Any] = {}
    for source in JUDGED:
        dev, own = load(data, source, "dev"), [item for item in held if item.source == source]
        forms = ("reply",) if source in ("diasafety", "hh") else FORMS
        found[source] = {form: source_figures(scorer, source, dev, own, form) for form in forms}
        # Variations of the text format are evaluated on a part of the rows.
        dev, own = sorted(dev, key=lambda item: hash_unit(item.key))[:PART], own[:PART]
        found[source]["reply_part"] = source_figures(scorer, source, dev, own, "reply")
        found[source]["reply_without_eos"] = source_figures(scorer, source, dev, own, "reply", eos=False)
        for share in PREFIXES:
            found[source][f"prefix_{share}"] = source_figures(scorer, source, dev, own, "reply", share=share)
    return found


def agreement(data: Path, rm: Scorer, gold: Scorer, rewards: dict[str, np.ndarray]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "samples_spearman": float(spearmanr(rewards["rm"], rewards["gold"])[0]),
        "samples_pearson": float(pearsonr(rewards["rm"], rewards["gold"])[0]),
    }
    for source in JUDGED:
        dev = sorted(load(data, source, "dev"), key=lambda item: hash_unit(item.key))[:PART]
        if source in PAIRED:
            signs = [np.sign(scorer(pairs_of(dev, "reply")) - scorer(pairs_of(dev, "reply", 1))) for scorer in (rm, gold)]
            found[f"{source}_same_sign"] = float((signs[0] == signs[1]).mean())
        else:
            both = [scorer(pairs_of(dev, "reply")) for scorer in (rm, gold)]
            found[f"{source}_spearman"] = float(spearmanr(*both)[0])
    return found


def sample_figures(job: Job, rm: Scorer, gold: Scorer) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return rewards of responses to held-out prompts, before and after tuning."""
    found: dict[str, Any] = {}
    base: dict[str, np.ndarray] = {}
    for name in ("lm", "aligned"):
        if not (job.out / name / "config.json").exists():
            continue
        heads, replies = replies_of(name, job)
        texts = [head + reply for head, reply in zip(heads, replies, strict=True)]
        rewards = {"rm": rm.ids(texts), "gold": gold.ids(texts)}
        base = base or rewards
        lengths = [len(reply) for reply in replies]
        ended = [reply[-1] == rm.laid.eos for reply in replies]
        found[name] = {judge: spread_of(values) for judge, values in rewards.items()}
        found[name] |= {"tokens": float(np.mean(lengths)), "ended": float(np.mean(ended))}
        found[name]["distinct_replies"] = len({tuple(reply) for reply in replies}) / len(replies)
        if name == "aligned":
            found[name]["kl_nats_per_reply"] = kl_figures(job.out, heads, replies)
    return found, base


def sizes(out: Path) -> dict[str, Any]:
    found = {}
    for folder in sorted(path for path in out.iterdir() if path.is_dir() and path.name != "__pycache__"):
        found[folder.name] = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return found | {"all": sum(found.values())}


def print_table(report: dict[str, Any]) -> None:
    for name, figures in report.get("language", {}).items():
        print(f"{name:<10} bits/byte", {source: round(value, 3) for source, value in figures.items()})
    for role in ("rm", "gold"):
        for source, forms in report.get(role, {}).items():
            line = {form: round(figures["accuracy"], 3) for form, figures in forms.items()}
            print(f"{role:<5} {source:<11}", line, {k: round(v, 3) for k, v in forms["reply"].items() if k != "rows"})
    for part in ("samples", "agreement", "draft", "sizes"):
        print(part, report.get(part))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--runs", type=Path, default=DEFAULT_RUNS)
    parser.add_argument("--part", choices=PARTS, action="append")
    args = parser.parse_args()
    setup(0)
    log = Log(args.runs / "evaluate.log")
    report: dict[str, Any] = read_json(REPORT) if REPORT.exists() else {}
    parts = args.part or list(PARTS)
    if "language" in parts:
        names = [name for name in ("lm", "draft", "aligned") if (args.out / name / "config.json").exists()]
        found = {name: language_figures(args.data, args.out, name) for name in names}
        report["language"] = report.get("language", {}) | found
        log("language", report["language"])
    if "ngram" in parts:
        report["language"] = report.get("language", {}) | {"5-gram": ngram_figures(args.data, args.out)}
    for role in ("rm", "gold"):
        if role in parts:
            report[role] = reward_figures(args.data, load_scorer(role, args.out), role)
            log(role, "done")
    if "samples" in parts:
        rm, gold = load_scorer("rm", args.out), load_scorer("gold", args.out)
        report["samples"], rewards = sample_figures(Job(args.data, args.out, args.runs), rm, gold)
        report["agreement"] = agreement(args.data, rm, gold, rewards)
        log("samples", report["samples"])
    if "draft" in parts:
        report["draft"] = draft_figures(args.data, args.out)
    report["sizes"] = sizes(args.out)
    done = {path.name.split(".")[0]: read_json(path) for path in sorted(args.runs.glob("*.done.json"))}
    report["stages"] = report.get("stages", {}) | done
    write_json(report, REPORT)
    print_table(report)


if __name__ == "__main__":
    main()
