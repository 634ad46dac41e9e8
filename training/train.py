"""Train every embedded model from random weights: `python training/train.py --data ../shared/data --out src/cards/tiny`.

Finished stages are skipped and interrupted ones resume from their checkpoint, so the same command also resumes.
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
from common import DEFAULT_DATA, DEFAULT_OUT, DEFAULT_RUNS, Job, Log, setup

# Large buffers recur at every step; returning them to the system in between costs a fifth of the time.
MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "30000000000", "MALLOC_TOP_PAD_": "536870912"}


def tokenizer_stage(job: Job) -> None:
    setup(job.seed)
    bpe.build(job.data, job.out / "tokenizer", Log(job.runs / "tokenizer.log"))
    job.finish("tokenizer", {"tokens": bpe.VOCAB})


def scale_stage(job: Job) -> None:
    setup(job.seed)
    job.finish("scale", {name: samples.rescale(name, job) for name in ("rm", "gold")})


STAGES: dict[str, Callable[[Job], None]] = {
    "tokenizer": tokenizer_stage,
    "lm": lm_train.run_lm,
    "rm": rm_train.run,
    "gold": gold_train.run,
    "scale": scale_stage,
    "aligned": aligned_train.run,
    "draft": lm_train.run_draft,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--runs", type=Path, default=DEFAULT_RUNS, help="Folder for logs and checkpoints.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="Share of all steps and samples; 0.02 gives a trial run.")
    parser.add_argument("--stage", choices=STAGES, help="Run only this stage, in this process.")
    args = parser.parse_args()
    job = Job(args.data, args.out, args.runs, args.seed, args.scale)
    if args.stage:
        STAGES[args.stage](job)
        return
    for stage in STAGES:
        if job.done_file(stage).exists():
            print(stage, "is finished")
            continue
        command = [sys.executable, __file__, *sys.argv[1:], "--stage", stage]
        subprocess.run(command, check=True, env=os.environ | MEMORY)


if __name__ == "__main__":
    main()
