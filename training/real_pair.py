"""Make the real pair: Gemma 3 270M, tuned on chosen responses, a reward model on its backbone, and a grader on another one.

The reward model gets a second head, which predicts final rewards (examples/value_head.py).

    make real-pair

Every stage is skipped if its result exists, and goes on after an interruption. Two processes train side by side, on one
thread each. Models and prompts are written to --out; nothing of them belongs into the repository (the terms of Gemma).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from common import DEFAULT_DATA, DEFAULT_RUNS, setup

STAGES = ("reward", "grader", "tuned")
VALUE_HEAD = Path(__file__).resolve().parents[1] / "examples" / "value_head.py"


def stages(folder: Path, data: Path) -> dict[str, Callable[[], None]]:
    from real_grader import train_grader
    from real_train import train_reward, tune

    runs = {"reward": train_reward, "grader": train_grader, "tuned": tune}
    return {name: lambda run=run: run(folder, data) for name, run in runs.items()}  # type: ignore[misc]


def run_stage(folder: Path, data: Path, stage: str) -> None:
    """Run a stage that has not finished, and write its seconds of CPU."""
    if (folder / f"{stage}.json").exists():
        return
    setup(0)
    stages(folder, data)[stage]()
    (folder / f"{stage}.cpu").write_text(str(time.process_time()))


def write_value(base: Path, folder: Path, first: int) -> None:
    """Write `value.gguf`, the reward model with a head that predicts final rewards. `first` is the first trained layer."""
    from transformers import AutoModelForSequenceClassification

    from real_files import write_reward

    if not (folder / "value.gguf").exists():
        files = {"model": "tuned.gguf", "reward": "reward", "prompts": "value.jsonl", "out": "value"}
        options = [text for name, file in files.items() for text in (f"--{name}", str(folder / file))]
        options += ["--form", "dialogue", "--stop", "\n\nHuman:"]
        subprocess.run([sys.executable, str(VALUE_HEAD), *options], check=True)
        model = AutoModelForSequenceClassification.from_pretrained(folder / "value")
        write_reward(base, folder, first, "value", model.score.weight.data)


def result(folder: Path, stage: str) -> dict[str, float]:
    """Return the figures of a finished stage, with the minutes of CPU of its last run."""
    figures: dict[str, float] = json.loads((folder / f"{stage}.json").read_text())
    return figures | {"cpu_minutes": float((folder / f"{stage}.cpu").read_text()) / 60}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--out", type=Path, default=DEFAULT_RUNS / "real")
    parser.add_argument("--stage", choices=STAGES, help="only this stage, in this process")
    args = parser.parse_args()
    folder: Path = args.out
    folder.mkdir(parents=True, exist_ok=True)
    if args.stage:
        run_stage(folder, args.data, args.stage)
        return

    import real_model
    import real_study
    from real_data import write_prompts
    from real_files import write_folders, write_lm, write_reward
    from real_train import FROZEN

    real_model.convert(folder)
    write_prompts(args.data, folder)
    command = [sys.executable, __file__, "--data", str(args.data), "--out", str(folder), "--stage"]
    beside = subprocess.Popen([*command, "grader"])
    for stage in ("reward", "tuned"):
        subprocess.run([*command, stage], check=True)
    if beside.wait():
        sys.exit("The grader failed. Run the command again.")
    base = folder / real_model.FILE
    write_reward(base, folder, FROZEN)
    write_lm(base, folder, FROZEN)
    write_folders(folder, FROZEN)
    write_value(base, folder, FROZEN)
    report = json.dumps({stage: result(folder, stage) for stage in STAGES}, indent=1)
    (real_study.RESULTS / "pair.json").write_text(report + "\n")
    print(report)


if __name__ == "__main__":
    main()
