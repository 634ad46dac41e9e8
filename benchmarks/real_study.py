"""The paper's experiments on the real pair: run plans method by method, and keep the finished ones.

    make real-pair                                            the models, in training/runs/real
    python benchmarks/real_study.py PLAN.toml ...             the plans are in benchmarks/real
    python benchmarks/real_study.py --repeat 1 PLAN.toml ...  the same with other seeds, as plan NAME.1

Best-of-n with several n draws the responses of the largest n; those of a smaller n are the first of them, with their part of
the cost. So only the largest n has steps and a time, unless --separate is given.

A method that the results already have is skipped, on any machine. Results of a plan are NAME.json, with the metrics of each
method, and NAME.csv.gz, with the figures of each response; responses themselves stay next to the models. An interrupted
method goes on from its finished responses.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import time
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cards.cli.arms import arms_of
from cards.cli.models import load_models
from cards.decoder import Decoder
from cards.events import Scored, Segment
from cards.methods.base import argmax
from cards.methods.responses.best_of_n import BestOfN
from cards.study.bench.plan import Arm, Plan, read
from cards.study.bench.report import report
from cards.study.bench.run import Bench, header, response_fields
from cards.study.evaluate.refusals import refuses
from cards.study.journal import Row
from cards.study.prompts import read as read_prompts
from cards.study.session import opened
from workload import HERE, machine

RUNS = HERE.parent / "training" / "runs" / "real"
RESULTS = HERE / "results" / "real"
USAGE = ("lm_steps", "rm_calls", "rounds", "lm_decoded_tokens", "draft_decoded_tokens", "rm_tokens", "flops", "seconds")
SEED_STEP = 1_000_000  # between the seeds of two repetitions, as in benches
FIELDS = ("label", "line", "id", "group", "seed", "finish_reason", "tokens", "reward", "gold", "logprob", "refused", *USAGE)


def located(path: Path, runs: Path) -> Plan:
    """Read a plan whose models and prompts are files of the folder `runs`."""
    plan = read(path)
    names = {name: getattr(plan, name) for name in ("model", "reward", "gold", "prompts")}
    found: dict[str, Any] = {name: _found(value, runs) for name, value in names.items()}
    return replace(plan, **found)


def _found(value: str | None, runs: Path) -> str | None:
    return str(runs / value) if value and (runs / value).exists() else value


def figures(row: Row) -> dict[str, Any]:
    """Return the figures of a response without its text."""
    own = {name: row[name] for name in FIELDS if name in row}
    own |= {"tokens": len(row["token_ids"]), "refused": int(refuses(row["text"]))}
    return own | {name: row["usage"][name] for name in USAGE}


def shared(arms: Sequence[Arm]) -> list[list[Arm]]:
    """Return the arms one by one, but those of best-of-n that differ only in n together, the largest n first."""
    found: dict[str, list[Arm]] = {}
    for arm in arms:
        shares = isinstance(arm.method, BestOfN) and arm.method.inner is None
        found.setdefault(arm.line if shares else arm.label, []).append(arm)
    return [sorted(group, key=lambda arm: -getattr(arm.method, "n", 0)) for group in found.values()]


class SharingBench(Bench):
    """A bench that draws the responses of best-of-n once for all n."""

    def __init__(self, smaller: Sequence[Arm], *fields: Any) -> None:
        super().__init__(*fields)
        self.smaller = smaller
        assert self.models.reward is not None
        engine: Any = self.models.engine
        scorer: Any = self.models.reward.parts[0]
        self.flops = engine.scheduler.slots.cache.flops + scorer.scheduler.slots.cache.flops  # of a token in both models

    async def respond(self, decoder: Decoder, row: Row) -> Row:
        """Draw and score responses for a row of the largest n, and add the rows of the smaller ones to the journal."""
        drawn: list[Segment] = []
        stream = decoder.astream(
            self._shaped(row["prompt"]), seed=row["seed"], max_tokens=self.plan.max_tokens, stop=self.plan.stop
        )
        async with aclosing(stream) as events:
            async for event in events:
                if isinstance(event, Scored):
                    drawn.append(event.segment)
        usage = events.result.usage
        for arm in self.smaller:
            assert isinstance(arm.method, BestOfN)
            n = arm.method.n
            saved = sum(len(segment.token_ids) for segment in drawn[n:])
            less = replace(
                usage,
                lm_steps=0,
                lm_decoded_tokens=usage.lm_decoded_tokens - saved,
                rm_tokens=usage.rm_tokens - saved,
                rm_calls=n,
                seconds=0.0,
                flops=usage.flops - saved * self.flops,
            )
            own = {"label": arm.label, "settings": arm.settings, "kl_bound": arm.method.kl_bound}
            self.session.journal.append(row | own | response_fields(drawn[argmax(drawn[:n])], less))
        return row | response_fields(drawn[argmax(drawn)], usage)


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _short(value) for name, value in row.items()} for row in rows)
    path.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def run(path: Path, runs: Path, limit_seconds: float, only: Sequence[str], repeat: int, logprobs: bool, separate: bool) -> None:
    """Run the methods of a plan that its results lack, one after another, until the time is over."""
    plan, end = located(path, runs), time.monotonic() + limit_seconds
    plan = replace(plan, seed=plan.seed + SEED_STEP * repeat)
    name = f"{path.stem}.{repeat}" if repeat else path.stem
    RESULTS.mkdir(parents=True, exist_ok=True)
    target, table = RESULTS / f"{name}.json", RESULTS / f"{name}.csv.gz"
    found = json.loads(target.read_text()) if target.exists() else {"methods": {}}
    arms = [arm for arm in arms_of(plan.methods) if arm.label not in found["methods"]]
    arms = [arm for arm in arms if not only or any(fnmatchcase(arm.label, pattern) for pattern in only)]
    if not arms:
        print(f"{name}: complete")
        return
    records = read_prompts(plan.prompts)
    assert plan.reward is not None
    models = load_models(plan.model, plan.reward, plan.gold, plan, [arm.method for arm in arms], plan.check_template)
    models.logprobs = logprobs
    with opened(runs / f"study-{name}.jsonl", header(plan, models), "study") as session:
        prompts = models.fitting(records, plan, plan.max_tokens)
        for group in [[arm] for arm in arms] if separate else shared(arms):
            if time.monotonic() > end:
                break
            start = time.process_time()
            bench = (
                SharingBench(group[1:], plan, prompts, models, session) if group[1:] else Bench(plan, prompts, models, session)
            )
            session.run(bench.run(group[:1]), "responses", models.run)
            cpu_seconds = time.process_time() - start
            summaries = {one.label: one for one in report(session.journal.header, session.rows).summaries}
            found |= {
                "machine": machine("cpu", plan.dtype),
                "plan": name,
                "max_tokens": plan.max_tokens,
                "prompts": len(prompts),
            }
            labels = [arm.label for arm in reversed(group)]
            for label in labels:
                found["methods"][label] = summaries[label].to_dict() | {
                    "cpu_seconds": cpu_seconds if label == labels[-1] else 0
                }
            target.write_text(json.dumps(found, indent=1) + "\n")
            own = [row for label in labels for row in session.rows if row["label"] == label]
            write_rows(table, [*read_rows(table), *map(figures, own)])
            print(f"{name}: {', '.join(labels)} after {cpu_seconds:.0f} s of CPU", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", type=Path, nargs="+")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of `make real-pair`")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no method after this time")
    parser.add_argument("--only", nargs="*", default=(), help="patterns of the methods to run, as in `cards:*`")
    parser.add_argument("--repeat", type=int, default=0, help="number of the repetition; every repetition has different seeds")
    parser.add_argument("--separate", action="store_true", help="draw best-of-n anew for each n, to measure its time")
    parser.add_argument("--no-logprobs", dest="logprobs", action="store_false", help="without perplexity and coherence")
    args = parser.parse_args()
    for path in args.plans:
        run(path, args.runs, 60 * args.minutes, args.only, args.repeat, args.logprobs, args.separate)


if __name__ == "__main__":
    main()
