"""Check the predictions of `cards calibrate` on prompts that it has not seen.

    python benchmarks/calibration.py --prompts FILE --samples FOLDER

The prompts are split in two. The first half calibrates for several constraints. On the second half, CARDS runs with the
settings found, one candidate at a time. Prints each rate as predicted, as measured on the first half and as measured on the
second, with 95% intervals over prompts. Samples are kept in the folder, and the same command resumes from them.
"""

from __future__ import annotations

import argparse
import json
import random
import warnings
from dataclasses import asdict
from pathlib import Path

from cards.errors import UnreachableTargetWarning
from cards.prompts import FormOptions
from cards.registry import load_engine, load_reward
from cards.study.calibrate.choose import measured
from cards.study.calibrate.plan import CalibrationRequest, Constraints
from cards.study.calibrate.run import Calibration
from cards.study.calibrate.samples import SamplingPlan
from cards.study.journal import Journal
from cards.study.models import Models
from cards.study.prompts import read, sample
from cards.study.session import Session
from workload import machine

HERE = Path(__file__).parent
CONSTRAINTS = [*(Constraints(max_cost=cost) for cost in (2.0, 3.0, 5.0)), Constraints(top=0.1), Constraints(max_fallback=0.02)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", default="tiny")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "calibration.json")
    args = parser.parse_args()
    warnings.simplefilter("ignore", UnreachableTargetWarning)
    models = Models(load_engine("tiny", slots=64), load_reward("tiny", slots=64))
    assert models.reward is not None
    questions = sample(models.fitting(read(args.prompts), FormOptions(), args.max_tokens), args.limit, 0)
    random.Random(0).shuffle(questions)
    half = len(questions) // 2
    plan = SamplingPlan(max_tokens=args.max_tokens, answers=args.answers, nodes=args.nodes)
    few = SamplingPlan(max_tokens=args.max_tokens, answers=2)  # enough for the mean length, by which costs are divided
    args.samples.mkdir(exist_ok=True)
    made = {name: str(value) for name, value in vars(args).items() if name != "out"}
    parts = {"seen": (questions[:half], plan), "held-out": (questions[half:], few)}

    def session(name: str) -> Session:
        return Session(Journal.open(args.samples / f"{name}.jsonl", made | {"part": name}))

    seen, held_out = (
        Calibration(
            models, models.reward, part, sizes, Session(Journal.open(args.samples / f"{name}.jsonl", made | {"part": name}))
        )
        for name, (part, sizes) in parts.items()
    )
    plain = models.run(held_out.plain())
    rows = []
    for constraints in CONSTRAINTS:
        found = models.run(seen.run(constraints, CalibrationRequest()))
        figures = {
            "predicted": found.choice.rates,
            "tried": found.probes[-1].measured,
            "held out": measured(models.run(held_out.probe(found.settings)), plain),
        }
        rates = {name: {of: asdict(of_rates[name]) for of, of_rates in figures.items()} for name in found.choice.rates}
        rows.append({"wish": asdict(constraints), "settings": found.settings, "rates": rates})
        print(constraints, found.settings)
        for name, of_rate in rates.items():
            print(f"  {name:10}", *(f"{of} {x['mean']:.3f} [{x['low']:.3f}, {x['high']:.3f}]" for of, x in of_rate.items()))
    prompts = {"seen": half, "held out": len(questions) - half}
    args.out.write_text(json.dumps({"prompts": prompts, "rows": rows} | machine("cpu", "auto"), indent=1))


if __name__ == "__main__":
    main()
