"""Check a claim of STARS: segments of unequal length make CARDS slow in batches.

    python benchmarks/stars_claim.py
    python benchmarks/stars_claim.py --device cuda --dtype bfloat16 --models random-1b random-8b

The paper (arXiv 2511.03827) reports 120 against 185 tokens/s with 64 prompts. This runs 64 requests on one engine with
responses of exactly --max-tokens tokens, with CARDS (segments of any length) and STARS (fixed length), for several targets
r*. There are two modes: `continuous`, where requests come and go, and `lockstep`, where no request gets its candidates
before those of all requests are drawn, as in a batch without continuous batching. Kept tokens per second are compared at
equal acceptance rate, by interpolation between the targets.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import cards
from cards.backends.configuration import resolve_dtype
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.loading import resolve_device
from cards.backends.local.rewards import ClassifierReward
from cards.engines.base import Ask, Engine
from cards.engines.worker import DeviceWorker
from cards.events import Segment
from workload import HERE, machine, prompts, random_pair

QUANTILES = (0.3, 0.5, 0.7, 0.9)


class LockStep(Engine):
    """Hold candidates back until those of all running requests are drawn."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.engine, self.requests, self.ready = engine, 0, 0
        self.freed = asyncio.Condition()
        self.round = 0

    def __getattribute__(self, name: str) -> Any:
        if name in ("engine", "requests", "ready", "freed", "round", "propose", "wait", "__class__"):
            return object.__getattribute__(self, name)
        return getattr(self.engine, name)

    def encode(self, prompt: Any) -> Any:
        return self.engine.encode(prompt)

    async def propose(self, ask: Ask) -> AsyncGenerator[list[Segment], None]:
        async with aclosing(self.engine.propose(ask)) as batches:
            found = [segment async for batch in batches for segment in batch]
        await self.wait()
        yield found

    async def wait(self) -> None:
        self.ready += 1
        mine = self.round
        while self.round == mine:  # poll, because requests also end
            if self.ready >= self.requests:
                self.round, self.ready = self.round + 1, 0
                return
            await asyncio.sleep(0.0005)


def arms(tau: float, mean: int) -> dict[str, cards.CARDS]:
    """Return CARDS, and STARS with the paper's lengths and the mean length of CARDS; one candidate at a time."""
    base = cards.CARDS(entropy_threshold=tau, width=1, alpha=1.0, temperature=0.7)
    fixed = {f"stars-{k}": replace(base, boundary=cards.FixedLength(maximum=k)) for k in (mean, 15, 30)}
    return {"cards": base, **fixed}


def run(engine: Engine, reward: ClassifierReward, method: cards.CARDS, args: argparse.Namespace) -> dict[str, float]:
    engine.forget()
    reward.forget()
    asked = (prompts() * (args.requests // 32 + 1))[: args.requests]
    start = time.perf_counter()
    results = cards.Decoder(engine, reward, method).batch(
        asked, max_tokens=args.max_tokens, concurrency=args.requests, progress=False
    )
    seconds = time.perf_counter() - start
    usage = sum((r.usage for r in results), cards.Usage())
    kept = sum(len(r.token_ids) for r in results)
    return {
        "tokens_per_second": kept / seconds,
        "acceptance": usage.acceptance_rate or 0.0,
        "fallback": usage.fallback_rate or 0.0,
        "tokens_per_segment": kept / sum(len(r.segments) for r in results),
        "drawn_per_kept": usage.lm_decoded_tokens / kept,
        "reward": statistics.fmean(r.reward or 0.0 for r in results),
    }


def at_equal_acceptance(found: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return tokens per second of every contestant at acceptance rates that all of them reach."""
    low = max(min(row["acceptance"] for row in rows) for rows in found.values())
    high = min(max(row["acceptance"] for row in rows) for rows in found.values())
    table = {}
    for rate in np.linspace(low, high, 5) if low < high else []:
        line = {}
        for arm, rows in found.items():
            rows = sorted(rows, key=lambda row: row["acceptance"])
            line[arm] = float(np.interp(rate, [r["acceptance"] for r in rows], [r["tokens_per_second"] for r in rows]))
        table[f"{rate:.2f}"] = line
    return table


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    device = resolve_device(args.device)
    options = {"slots": 2 * args.requests, "context": args.context}
    if name == "tiny":
        engine = TransformersEngine.load("tiny", device=str(device), dtype=args.dtype, **options)
        reward = ClassifierReward.load("tiny", device=str(device), dtype=args.dtype, **options)
        tau = engine.entropy_threshold
    else:
        dtype = resolve_dtype(args.dtype, device)
        engine, reward = DeviceWorker.on(device).call(lambda: random_pair(name, str(device), dtype, **options))
        tau = args.entropy_threshold
    engine.end_ids = frozenset()  # responses of equal length, so that tokens are comparable
    free = cards.CARDS(target=-1e9, acceptance="hard", entropy_threshold=tau, temperature=0.7)
    results = cards.Decoder(engine, reward, free).batch(prompts(), max_tokens=args.max_tokens, progress=False)
    rewards = [s.reward for r in results for s in r.segments if s.reward is not None]
    beta = statistics.pstdev(rewards)
    mean = round(statistics.fmean(len(s.token_ids) for r in results for s in r.segments))
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(args.repeats):
        for quantile in QUANTILES:
            for arm, method in arms(tau, mean).items():
                target = float(np.quantile(rewards, quantile))
                settled = replace(method, target=target, beta=beta)
                for way, used in (("continuous", engine), ("lockstep", LockStep(engine))):
                    row = run(used, reward, settled, args) | {"target": target}
                    found.setdefault(f"{arm} {way}", []).append(row)
                    print(f"{name} {arm:9} {way:10}", {k: round(v, 2) for k, v in row.items()}, flush=True)
    median = {
        arm: [
            {key: statistics.median(row[key] for row in rows[i :: len(QUANTILES)]) for key in rows[0]}
            for i in range(len(QUANTILES))
        ]
        for arm, rows in found.items()
    }
    return {"model": name, "tau": tau, "beta": beta, "arms": median, "at_equal_acceptance": at_equal_acceptance(median)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--entropy-threshold", type=float, default=5.0, help="tau_u for random models.")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "stars_claim.json")
    args = parser.parse_args()
    report: dict[str, Any] = {
        "on": machine(args.device, args.dtype),
        "settings": {k: str(v) for k, v in vars(args).items() if k != "out"},
    }
    report["models"] = [measure(name, args) for name in args.models]
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    for model in report["models"]:
        print(f"\n{model['model']}: kept tokens per second at equal acceptance rate")
        for rate, line in model["at_equal_acceptance"].items():
            print(f"  {rate}", {arm: round(value, 1) for arm, value in line.items()})


if __name__ == "__main__":
    main()
