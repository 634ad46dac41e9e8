"""Trains every embedded model from nothing: `python training/train.py --data ../shared/data --out src/cards/tiny`.

Finished stages are skipped and interrupted ones go on from their checkpoint, so the same command also resumes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import aligned_train
import bpe
import gold_train
import lm_train
import rm_train
import samples
from common import DEFAULT_DATA, DEFAULT_OUT, DEFAULT_RUNS, Log, setup, write_json

STAGES = ("tokenizer", "lm", "rm", "gold", "scale", "draft", "aligned")
# Large buffers come back at every step; giving them to the system in between costs a fifth of the time.
MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "30000000000", "MALLOC_TOP_PAD_": "536870912"}


def tokenizer_stage(data: Path, out: Path, runs: Path, seed: int) -> None:
    setup(seed)
    bpe.build(data, out / "tokenizer", Log(runs / "tokenizer.log"))
    write_json({"tokens": bpe.VOCAB}, runs / "tokenizer.done.json")


def scale_stage(data: Path, out: Path, runs: Path, seed: int) -> None:
    setup(seed)
    figures = {name: samples.rescale(name, data, out, runs) for name in ("rm", "gold")}
    write_json(figures, runs / "scale.done.json")


RUN: dict[str, Callable[[Path, Path, Path, int], None]] = {
    "tokenizer": tokenizer_stage,
    "lm": lm_train.run_lm,
    "rm": rm_train.run,
    "gold": gold_train.run,
    "scale": scale_stage,
    "draft": lm_train.run_draft,
    "aligned": aligned_train.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--runs", type=Path, default=DEFAULT_RUNS, help="logs and checkpoints")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stage", choices=STAGES, help="this stage alone, in this process")
    args = parser.parse_args()
    if args.stage:
        RUN[args.stage](args.data, args.out, args.runs, args.seed)
        return
    for stage in STAGES:
        if (args.runs / f"{stage}.done.json").exists():
            print(stage, "is done")
            continue
        command = [sys.executable, __file__, "--stage", stage, "--seed", str(args.seed)]
        command += ["--data", str(args.data), "--out", str(args.out), "--runs", str(args.runs)]
        subprocess.run(command, check=True, env=os.environ | MEMORY)


if __name__ == "__main__":
    main()
