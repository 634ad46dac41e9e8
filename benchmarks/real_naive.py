"""Time the procedure of CARDS as published, without any cache, on the real pair: three responses, which take minutes each.

    python benchmarks/real_naive.py

The procedure is that of tests/helpers/cards_reference.py: one candidate at a time, a whole forward pass of the LM for every
token and of the reward model for every candidate. --target is the r* of CARDS in benchmarks/real/efficiency.toml.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from real_study import RESULTS, RUNS
from workload import HERE, machine

sys.path.insert(0, str(HERE.parent / "tests"))
from helpers.cards_reference import Oracle, Settings


class Counted:
    """A model that counts its calls."""

    def __init__(self, model: Any) -> None:
        self.model, self.device, self.calls = model, model.device, 0

    def __call__(self, ids: torch.Tensor) -> Any:
        self.calls += 1
        return self.model(ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--target", type=float, required=True)
    parser.add_argument("--responses", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(args.runs / "tuned")
    lm = Counted(AutoModelForCausalLM.from_pretrained(args.runs / "tuned", dtype=torch.bfloat16).eval())
    rm = Counted(AutoModelForSequenceClassification.from_pretrained(args.runs / "reward", dtype=torch.bfloat16).eval())
    lines = (args.runs / "report.jsonl").read_text(encoding="utf-8").splitlines()[: args.responses]
    oracle = Oracle(lm, rm, frozenset([tokenizer.eos_token_id]), Settings(args.target))
    start, tokens = time.perf_counter(), 0
    for seed, line in enumerate(lines):
        pieces = oracle.answer(tokenizer(json.loads(line)["prompt"]).input_ids, seed)
        tokens += sum(len(piece.kept.token_ids) for piece in pieces)
        print(f"{seed + 1} of {len(lines)} after {time.perf_counter() - start:.0f} s", flush=True)
    count = len(lines)
    found = {
        "responses": count,
        "tokens": tokens / count,
        "lm_calls": lm.calls / count,
        "rm_calls": rm.calls / count,
        "seconds": (time.perf_counter() - start) / count,
        "machine": machine("cpu", "bfloat16"),
    }
    (RESULTS / "naive.json").write_text(json.dumps(found, indent=1) + "\n")
    print(found)


if __name__ == "__main__":
    main()
