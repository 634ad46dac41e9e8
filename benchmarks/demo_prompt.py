"""Choose the prompt of the first example by a rule: the median gain of CARDS over best-of-n at equal compute.

    python benchmarks/demo_prompt.py

The prompts are 50 of the 64 that are part of the package, drawn with seed 0. Each gets one response by CARDS and one by
best-of-n, both with seed 0, as `cards generate` gives them. n is the smallest that spends at least the FLOPs of CARDS on this
prompt. CARDS proposes one candidate at a time (width 1), because other widths give the same responses at a cost that depends
on the speed of the machine. The gain is the difference of the rewards that steer, and 0 for equal texts. The settings of CARDS
are tried in the order of SETTINGS, and the first one with a positive median gain is used. The prompt is the one with the
lower median gain, number 25 of 50.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path

import cards
from cards.engines.base import Engine
from cards.errors import UnreachableTargetWarning
from cards.registry import load_engine, load_reward
from cards.rewards.base import Reward
from cards.study.prompts import read, sample

SETTINGS = (
    "cards:width=1",  # the default
    "cards:acceptance=hard,alpha=1,width=1",  # the setting of docs/embedded.md
    "cards:acceptance=hard,alpha=1,max_rejections=8,width=1",
    "cards:acceptance=hard,alpha=1,target=1,width=1",
    "best-of-n:n=2,inner=(cards:acceptance=hard,alpha=1,width=1)",
)
PROMPTS = 50


@dataclass(frozen=True)
class Outcome:
    """The rewards and the cost of both methods on a prompt."""

    prompt: str
    n: int
    reward: float
    best_of_n: float
    mflops: float
    best_of_n_mflops: float
    text: str
    best_of_n_text: str

    @property
    def gain(self) -> float:
        return 0.0 if self.text == self.best_of_n_text else self.reward - self.best_of_n


class Runs:
    """Responses by prompt and method, each with empty caches."""

    def __init__(self, engine: Engine, reward: Reward) -> None:
        self.engine, self.reward = engine, reward
        self.known: dict[tuple[str, str], cards.Result] = {}

    def __call__(self, method: str, prompt: str) -> cards.Result:
        if (method, prompt) not in self.known:
            self.engine.forget()
            self.reward.forget()
            message: cards.events.Message = {"role": "user", "content": prompt}
            self.known[method, prompt] = cards.Decoder(self.engine, self.reward, method)([message])
        return self.known[method, prompt]

    def best_of(self, n: int, prompt: str) -> cards.Result:
        return self(f"best-of-n:n={n}", prompt)

    def equal(self, prompt: str, flops: float) -> int:
        """Return the smallest n for which best-of-n spends at least this many FLOPs on the prompt."""
        n = 4
        for _ in range(3):
            n = max(1, ceil(n * flops / self.best_of(n, prompt).usage.flops))
        while self.best_of(n, prompt).usage.flops < flops:
            n += 1
        while n > 1 and self.best_of(n - 1, prompt).usage.flops >= flops:
            n -= 1
        return n

    def compare(self, method: str, prompt: str) -> Outcome:
        own = self(method, prompt)
        n = self.equal(prompt, own.usage.flops)
        other = self.best_of(n, prompt)
        assert own.reward is not None
        assert other.reward is not None
        costs = own.usage.flops / 1e6, other.usage.flops / 1e6
        return Outcome(prompt, n, own.reward, other.reward, *costs, own.text.strip(), other.text.strip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "demo_prompt.json")
    args = parser.parse_args()
    warnings.simplefilter("ignore", UnreachableTargetWarning)
    runs = Runs(load_engine("tiny"), load_reward("tiny"))
    prompts = [str(record.prompt) for record in sample(read("tiny"), PROMPTS, 0)]
    tried: list[dict[str, object]] = []
    for method in SETTINGS:
        outcomes = sorted((runs.compare(method, prompt) for prompt in prompts), key=lambda outcome: outcome.gain)
        median, gains = outcomes[(PROMPTS - 1) // 2], [outcome.gain for outcome in outcomes]
        summary = {
            "median_gain": median.gain,
            "mean_gain": statistics.fmean(gains),
            "wins": sum(gain > 0 for gain in gains),
            "reward": statistics.fmean(outcome.reward for outcome in outcomes),
            "best_of_n": statistics.fmean(outcome.best_of_n for outcome in outcomes),
        }
        tried.append({"method": method, **summary})
        print(json.dumps(tried[-1]), flush=True)
        if median.gain > 0:
            break
    report = {"prompts": PROMPTS, "tried": tried, "method": method, "chosen": {**asdict(median), "gain": median.gain}}
    args.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(report["chosen"], indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
