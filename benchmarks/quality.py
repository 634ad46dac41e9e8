"""Measure reward and cost of the methods on the embedded pair, paired over prompts, graded by a gold reward model.

    python benchmarks/quality.py --prompts FILE [FILE ...]

A prompt file is JSON Lines (also .gz) with `prompt` (raw text) or `text` (a dialogue with Human:/Assistant: turns, of which the
first human turn is used). --each prompts of each file are used, spread evenly over it.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import statistics
import time
from pathlib import Path
from typing import Any

from scipy import stats

import cards
from cards.backends.files import TINY
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.events import Prompt, Response
from workload import HERE, machine

SHARE_ALIKE = ("CC-BY-SA", "CDLA")


def read(path: Path, count: int, longest: int, engine: TransformersEngine, offset: float = 0.0) -> list[str]:
    """Return the prompts of a file, as raw text, that leave room for a response."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = [json.loads(line) for line in data.decode("utf-8").splitlines() if line.strip()]
    rows = [row for row in rows if not str(row.get("license", "")).startswith(SHARE_ALIKE)]
    texts = [
        row["prompt"] if "prompt" in row else "\n\n" + row["text"].split("\n\nAssistant:")[0] + "\n\nAssistant:" for row in rows
    ]
    texts = list(dict.fromkeys(t for t in texts if len(engine.tokenizer(t)["input_ids"]) <= longest))
    step = len(texts) / count
    return [texts[int((i + offset) * step)] for i in range(count)]


def grade(reward: ClassifierReward, prompts: list[Prompt], results: list[cards.Result]) -> list[float]:
    """Return rewards of finished responses under any reward model."""

    async def score() -> list[float]:
        answers = [Response(r.text, r.token_ids, r.finish_reason) for r in results]
        return [(await reward.score(p, [a]))[0] for p, a in zip(prompts, answers, strict=True)]

    return asyncio.run(score())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, nargs="+", required=True)
    parser.add_argument("--each", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--target", type=float, default=None, help="Target reward r*. Default: suggested by the embedded RM.")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--offset", type=float, default=0.0, help="Start, in [0, 1), between two prompts that are used.")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "quality.json")
    args = parser.parse_args()
    engine, reward = TransformersEngine.load("tiny"), ClassifierReward.load("tiny")
    gold = ClassifierReward.load(str(TINY / "gold"))
    sampling: dict[str, Any] = {"temperature": 0.7}
    methods = {
        "vanilla": cards.methods.Vanilla(**sampling),
        "best-of-8": cards.methods.BestOfN(n=8, **sampling),
        "rejection-sampling": cards.methods.RejectionSampling(target=args.target, **sampling),
        "cards": cards.CARDS(target=args.target, **sampling),
        # the setting of docs/embedded.md, chosen on other prompts
        "cards, hard": cards.CARDS(target=2.0, acceptance="hard", alpha=1.0, **sampling),
    }
    report: dict[str, Any] = {"on": machine("cpu", "float32"), "methods": {k: str(v) for k, v in methods.items()}, "sets": {}}
    for path in args.prompts:
        texts = read(path, args.each, engine.context - args.max_tokens, engine, args.offset) * args.seeds
        prompts = [engine.encode(text) for text in texts]
        rows, per_method = {}, {}
        for name, method in methods.items():
            engine.forget()
            reward.forget()
            start = time.perf_counter()
            results = cards.Decoder(engine, reward, method).batch(texts, max_tokens=args.max_tokens, progress=None)
            seconds = time.perf_counter() - start
            rewards, golds = grade(reward, prompts, results), grade(gold, prompts, results)
            per_method[name] = rewards, golds
            usage = sum((r.usage for r in results), cards.Usage())
            rows[name] = {
                "reward": statistics.fmean(rewards),
                "gold": statistics.fmean(golds),
                "tokens": statistics.fmean(len(r.token_ids) for r in results),
                "lm_drawn": usage.lm_decoded_tokens / len(results),
                "rm_tokens": usage.rm_tokens / len(results),
                "acceptance": usage.acceptance_rate,
                "fallback": usage.fallback_rate,
                "seconds_per_answer": seconds / len(results),
                **against(per_method["vanilla"], per_method[name]),
            }
            print(path.name, name, {k: round(v, 4) if v is not None else None for k, v in rows[name].items()}, flush=True)
        report["sets"][path.name] = {"prompts": len(texts), "rows": rows}
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")


def against(base: tuple[list[float], list[float]], other: tuple[list[float], list[float]]) -> dict[str, float]:
    """Compare paired over prompts: p of a two-sided Wilcoxon test and of a paired t-test, and the share of wins or ties."""
    found = {}
    for kind, a, b in zip(("reward", "gold"), base, other, strict=True):
        if a != b:
            found[f"{kind}_p_wilcoxon"] = float(stats.wilcoxon(a, b).pvalue)
            found[f"{kind}_p_t"] = float(stats.ttest_rel(a, b).pvalue)
            found[f"{kind}_win_tie"] = statistics.fmean(y >= x for x, y in zip(a, b, strict=True))
    return found


if __name__ == "__main__":
    main()
