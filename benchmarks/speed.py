"""Compare speed in one run: the published procedure, plain `generate`, and this package, with 1 and 32 requests.

    python benchmarks/speed.py    # the embedded pair and a random 100M Llama
    python benchmarks/speed.py --models random-1b random-8b --device cuda --dtype bfloat16

All contestants write responses of exactly --max-tokens tokens (the end token is disabled), so that tokens are comparable.
`naive` is the published procedure (tests/helpers/cards_reference.py): no cache, one candidate at a time, the whole text to
the RM. It responds to the same prompts with the same seeds as `cards-1` and gives the same text. Each repeat runs every
contestant once; ratios are computed within a repeat, and the median over repeats is reported.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

import cards
from cards import Decoder
from cards.backends.configuration import resolve_dtype
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.loading import resolve_device
from cards.backends.local.rewards import ClassifierReward
from cards.engines.worker import DeviceWorker
from cards.events import Result
from workload import HERE, machine, prompts, random_pair

sys.path.insert(0, str(HERE.parent / "tests"))
from helpers.cards_reference import Oracle, Settings


def calibrated(engine: TransformersEngine, reward: ClassifierReward, options: dict[str, Any]) -> cards.CARDS:
    """Return settings of CARDS that give a random pair realistic segments (about 10 tokens) and acceptance (about 40%)."""
    plain = cards.Decoder(engine, None, cards.methods.Vanilla()).batch(prompts()[:4], **options)

    @torch.no_grad()
    def entropies() -> torch.Tensor:
        found = []
        for prompt, result in zip(prompts(), plain, strict=False):
            ids = torch.tensor([[*engine.encode(prompt).token_ids, *result.token_ids]], device=engine.model.device)
            logits = engine.model(ids).logits[0, -len(result.token_ids) :].float()
            found.append(torch.distributions.Categorical(logits=logits).entropy())
        return torch.cat(found)

    threshold = DeviceWorker.on(engine.model.device).call(entropies).quantile(0.84).item()
    method = cards.CARDS(target=-1e9, acceptance="hard", entropy_threshold=threshold)
    free = cards.Decoder(engine, reward, method).batch(prompts()[:16], **options)
    rewards = [s.reward for result in free for s in result.segments if s.reward is not None]
    beta = 3 * statistics.pstdev(rewards)  # wide, with a constant threshold: a random RM ranks prompts rather than responses
    return replace(
        method, target=statistics.fmean(rewards) + 0.9 * beta, beta=beta, alpha=1.0, acceptance="soft", temperature=0.7
    )


class Arms:
    """The contestants; each returns (seconds, kept tokens, results)."""

    def __init__(self, name: str, single: int, args: argparse.Namespace) -> None:
        device = resolve_device(args.device)
        dtype = resolve_dtype(args.dtype, device)
        options = {"slots": args.slots, "context": args.context}
        if name == "tiny":
            self.engine = TransformersEngine.load("tiny", device=str(device), dtype=args.dtype, **options)
            self.reward = ClassifierReward.load("tiny", device=str(device), dtype=args.dtype, **options)
        else:
            self.engine, self.reward = DeviceWorker.on(device).call(
                lambda: random_pair(name, str(device), dtype, reward=args.reward, **options)
            )
        self.engine.end_ids = frozenset()
        generation = self.engine.model.generation_config
        generation.eos_token_id, generation.pad_token_id = None, 0
        self.options: dict[str, Any] = {"max_tokens": args.max_tokens}
        if name == "tiny":
            self.method = cards.CARDS(
                target=self.reward.target if args.target is None else args.target,
                entropy_threshold=args.entropy_threshold or self.engine.entropy_threshold,
            )
        else:
            self.method = calibrated(self.engine, self.reward, self.options)
        self.single = single

    def prompt_tokens(self, count: int) -> int:
        return sum(len(self.engine.encode(prompt).token_ids) for prompt in prompts()[:count])

    def in_worker(self, run: Callable[[], tuple[float, int, list[Result]]]) -> tuple[float, int, list[Result]]:
        """Run in the worker thread: with a second computing thread, OpenMP's teams slow each other, `generate` threefold."""
        return DeviceWorker.on(self.engine.model.device).call(run)

    def cards(self, requests: int) -> tuple[float, int, list[Result]]:
        return self.ours(cards.Decoder(self.engine, self.reward, self.method), requests)

    def vanilla(self, requests: int) -> tuple[float, int, list[Result]]:
        return self.ours(cards.Decoder(self.engine, None, cards.methods.Vanilla()), requests)

    def ours(self, decoder: Decoder, requests: int) -> tuple[float, int, list[Result]]:
        chosen = prompts()[: self.single] if requests == 1 else prompts()[:requests]
        self.engine.forget()
        self.reward.forget()
        start = time.perf_counter()
        if requests == 1:
            results = [decoder(prompt, seed=i, **self.options) for i, prompt in enumerate(chosen)]
        else:
            results = decoder.batch(chosen, **self.options)
        return time.perf_counter() - start, sum(len(r.token_ids) for r in results), results

    def generate(self, requests: int) -> tuple[float, int, list[Result]]:
        tokenizer, model = self.engine.tokenizer, self.engine.model
        chosen: list[Any] = prompts()[: self.single] if requests == 1 else prompts()[:requests]
        texts = [tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True) for p in chosen]
        batches = [[text] for text in texts] if requests == 1 else [texts]
        settings = {"do_sample": True, "temperature": 0.7, "top_k": 40, "max_new_tokens": self.options["max_tokens"]}
        start = time.perf_counter()
        for batch in batches:
            inputs = tokenizer(batch, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
            model.generate(**inputs.to(model.device), **settings)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        return time.perf_counter() - start, len(chosen) * self.options["max_tokens"], []

    def naive(self, expected: list[Result]) -> tuple[float, int, list[Result]]:
        method, names = self.method, {f.name for f in fields(Settings)}
        settings = {f.name: getattr(method, f.name) for f in fields(method) if f.name in names}
        oracle = Oracle(self.engine.model, self.reward.model, frozenset(), Settings(**settings, **self.options))
        chosen = [self.engine.encode(prompt).token_ids for prompt in prompts()[: self.single]]
        start = time.perf_counter()
        answers = [[t for piece in oracle.answer(ids, seed) for t in piece.kept.token_ids] for seed, ids in enumerate(chosen)]
        seconds = time.perf_counter() - start
        for i, (answer, result) in enumerate(zip(answers, expected, strict=True)):
            if tuple(answer) != result.token_ids:
                print(f"  note: naive and cards give different texts for prompt {i} (rounding)", file=sys.stderr)
        return seconds, sum(map(len, answers)), []


def measure(name: str, single: int, args: argparse.Namespace) -> dict[str, Any]:
    arms = Arms(name, single, args)
    contestants: dict[str, Callable[[], tuple[float, int, list[Result]]]] = {
        "generate-1": lambda: arms.in_worker(lambda: arms.generate(1)),
        "vanilla-1": lambda: arms.vanilla(1),
        "cards-1": lambda: arms.cards(1),
        f"generate-{args.requests}": lambda: arms.in_worker(lambda: arms.generate(args.requests)),
        f"vanilla-{args.requests}": lambda: arms.vanilla(args.requests),
        f"cards-{args.requests}": lambda: arms.cards(args.requests),
    }
    for run in contestants.values():  # warm up
        run()
    times: dict[str, list[float]] = {}
    books: dict[str, cards.Usage] = {}
    read: dict[str, int] = {}
    for _ in range(args.repeats):
        results: dict[str, list[Result]] = {}
        for arm, run in contestants.items():
            seconds, tokens, results[arm] = run()
            times.setdefault(arm, []).append(1000 * seconds / tokens)
            if results[arm]:
                books[arm] = sum((r.usage for r in results[arm]), cards.Usage())
                read[arm] = arms.prompt_tokens(len(results[arm]))
        if not args.skip_naive:
            seconds, tokens, _ = arms.in_worker(lambda: arms.naive(results["cards-1"]))  # noqa: B023
            times.setdefault("naive-1", []).append(1000 * seconds / tokens)
    asyncio.run(cards.Decoder(arms.engine, arms.reward, arms.method).aclose())
    return {
        "model": name,
        "ms_per_kept_token": times,
        "ratios": ratios(times, args.requests),
        "books": _books(books, read),
        "method": str(arms.method),
    }


def ratios(times: dict[str, list[float]], many: int) -> dict[str, float]:
    """Return medians over repeats of the ratios within each repeat."""

    def over(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))

    found = {
        "cards-1 / generate-1": over("cards-1", "generate-1"),
        "vanilla-1 / generate-1": over("vanilla-1", "generate-1"),
        f"vanilla-{many} / generate-{many}": over(f"vanilla-{many}", f"generate-{many}"),
        f"cards-{many} / generate-{many}": over(f"cards-{many}", f"generate-{many}"),
    }
    if "naive-1" in times:
        found |= {"naive-1 / cards-1": over("naive-1", "cards-1"), f"naive-1 / cards-{many}": over("naive-1", f"cards-{many}")}
    return found


def _books(books: dict[str, cards.Usage], read: dict[str, int]) -> dict[str, dict[str, float | None]]:
    """Return the distribution of work, by contestant."""
    return {
        arm: {
            "acceptance_rate": u.acceptance_rate,
            "fallback_rate": u.fallback_rate,
            "tokens_per_segment": (u.lm_decoded_tokens - u.lm_wasted_tokens) / max(1, u.accepted + u.fallbacks),
            "drawn_per_kept_token": u.lm_decoded_tokens / max(1, u.lm_decoded_tokens - u.lm_wasted_tokens),
            "rm_tokens_per_drawn_token": max(0, u.rm_tokens - read[arm]) / max(1, u.lm_decoded_tokens),  # without prompts
            "lm_share_of_seconds": u.lm_seconds / u.seconds,
            "rm_share_of_seconds": u.rm_seconds / u.seconds,
        }
        for arm, u in books.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "random-100m"])
    parser.add_argument("--reward", default=None, help="Shape of the RM of random models. Default: that of the LM.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--single", type=int, nargs="+", default=[8, 2], help="Prompts of the single-request contestants.")
    parser.add_argument("--skip-naive", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--target", type=float, default=None, help="r* for the embedded pair. Default: suggested by its RM.")
    parser.add_argument("--entropy-threshold", type=float, default=None, help="tau_u for its LM. Default: set by the LM.")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "speed.json")
    args = parser.parse_args()
    report: dict[str, Any] = {
        "on": machine(args.device, args.dtype),
        "settings": {k: str(v) for k, v in vars(args).items() if k != "out"},
        "models": [],
    }
    for i, name in enumerate(args.models):
        found = measure(name, args.single[min(i, len(args.single) - 1)], args)
        report["models"].append(found)
        print(f"\n{name}: {found['method']}")
        for arm, values in found["ms_per_kept_token"].items():
            print(f"  {arm:14} {statistics.median(values):9.2f} ms per kept token   {found['books'].get(arm, '')}")
        for ratio, value in found["ratios"].items():
            print(f"  {ratio:28} {value:7.2f}")
        args.out.parent.mkdir(exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
