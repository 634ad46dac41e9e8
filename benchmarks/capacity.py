"""Compute how many replicas of the LM and of the RM a load needs, from measured tokens and rates.

    # measure on this machine
    OMP_NUM_THREADS=1 python benchmarks/capacity.py --save benchmarks/results/capacity.json
    # print the table of docs/capacity.md
    python benchmarks/capacity.py --read benchmarks/results/capacity.json
    # the same for replicas with other rates
    python benchmarks/capacity.py --read benchmarks/results/capacity.json --draw 2500 --read-lm 30000 --read-rm 30000

Tokens come from `Usage`. Rates are tokens per second of processor time in one thread, so that other work on the machine
does not change them. A unit is the hardware of one replica: here a core, in other deployments one or several GPUs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cards
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.events import Response
from cards.usage import Usage, track_usage
from workload import machine, prompts

UNITS = (2, 4, 8, 16, 32, 64, 100, 250, 500, 1000)


@dataclass(frozen=True)
class Load:
    """Tokens per kept token."""

    drawn: float  # decoded by the LM
    read_lm: float  # by the LM: prompts, and tokens lost from the cache
    read_rm: float

    @classmethod
    def of(cls, usage: Usage) -> Load:
        kept = usage.lm_decoded_tokens - usage.lm_wasted_tokens
        return cls(usage.lm_decoded_tokens / kept, usage.lm_prefill_tokens / kept, usage.rm_tokens / kept)


@dataclass(frozen=True)
class Rates:
    """Tokens per second that one busy replica decodes or reads."""

    draw: float
    read_lm: float
    read_rm: float

    def lm(self, load: Load) -> float:
        """Return the seconds of an LM replica per kept token."""
        return load.drawn / self.draw + load.read_lm / self.read_lm

    def rm(self, load: Load) -> float:
        return load.read_rm / self.read_rm


def split(units: int, lm: float, rm: float) -> tuple[int, int, float]:
    """Return LM replicas, RM replicas and kept tokens per second for the best split of `units`."""
    if not rm:
        return units, 0, units / lm
    rates = [(min(n / lm, (units - n) / rm), n) for n in range(1, units)]
    best, n = max(rates)
    return n, units - n, best


def table(loads: dict[str, Load], rates: Rates) -> str:
    plain, guided = loads["vanilla"], loads["cards"]
    lm, rm = rates.lm(guided), rates.rm(guided)
    lines = [
        f"LM: {1000 * lm:.2f} ms per kept token, RM: {1000 * rm:.2f} ms; LM replicas per RM replica: {lm / rm:.2f}; "
        f"cost relative to plain sampling: {(lm + rm) / rates.lm(plain):.2f}",
        "",
        "| units | LM | RM | CARDS, kept tokens/s | plain sampling, tokens/s | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for units in UNITS:
        n, m, kept = split(units, lm, rm)
        base = units / rates.lm(plain)
        lines.append(f"| {units:,} | {n:,} | {m:,} | {kept:,.0f} | {base:,.0f} | {base / kept:.2f} |")
    return "\n".join(lines)


def measure(repeats: int = 3) -> tuple[dict[str, Load], Rates]:
    """Measure the embedded pair on the 32 conversations of the other benchmarks; sum over repeats with different seeds."""
    engine, reward = TransformersEngine.load("tiny"), ClassifierReward.load("tiny")
    plain, guided = cards.Decoder(engine, None, cards.methods.Vanilla()), cards.Decoder(engine, reward)
    asked = prompts()

    def timed(decoder: cards.Decoder, seed: int, most: int) -> tuple[float, Usage, list[cards.Result]]:
        engine.forget()
        reward.forget()
        start = time.process_time()
        results = decoder.batch(asked, max_tokens=most, seed=seed, progress=False)
        return time.process_time() - start, sum((r.usage for r in results), Usage()), results

    async def scored(results: list[cards.Result]) -> Usage:
        usage = Usage()
        with track_usage(usage):
            texts = [(engine.encode(p), Response(r.text, r.token_ids)) for p, r in zip(asked, results, strict=True)]
            await asyncio.gather(*(reward.score(prompt, [response]) for prompt, response in texts))
        return usage

    timed(guided, 0, 8)  # the first pass is slow
    first, whole, steered, scores = Usage(), Usage(), Usage(), Usage()
    reading = drawing = scoring = 0.0
    for seed in range(0, 1000 * repeats, 1000):
        seconds, usage, _ = timed(plain, seed, 1)
        reading, first = reading + seconds, first + usage
        seconds, usage, results = timed(plain, seed, 128)
        drawing, whole = drawing + seconds, whole + usage
        _, usage, _ = timed(guided, seed, 128)
        steered += usage
        reward.forget()
        start = time.process_time()
        scores += asyncio.run(scored(results))
        scoring += time.process_time() - start
    draw = (whole.lm_decoded_tokens - first.lm_decoded_tokens) / (drawing - reading)
    rates = Rates(draw, first.lm_prefill_tokens / reading, scores.rm_tokens / scoring)
    return {"vanilla": Load.of(whole), "cards": Load.of(steered)}, rates


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--save", type=Path)
    parser.add_argument("--read", type=Path, help="Read earlier measurements instead of measuring.")
    for name in ("draw", "read_lm", "read_rm"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, help="Tokens per second of one replica.")
    args = parser.parse_args()
    if args.read:
        found = json.loads(args.read.read_text())
        loads, rates = {name: Load(**load) for name, load in found["loads"].items()}, Rates(**found["rates"])
    else:
        loads, rates = measure()
    if args.save:
        made = {name: asdict(load) for name, load in loads.items()}
        args.save.write_text(json.dumps({"on": machine("cpu", "auto"), "loads": made, "rates": asdict(rates)}, indent=1) + "\n")
    own = {name: getattr(args, name) for name in ("draw", "read_lm", "read_rm") if getattr(args, name)}
    rates = replace(rates, **own)
    for name, load in loads.items():
        print(name, {key: round(value, 2) for key, value in asdict(load).items()})
    print("rates", {key: round(value) for key, value in asdict(rates).items()}, end="\n\n")
    print(table(loads, rates))


if __name__ == "__main__":
    main()
