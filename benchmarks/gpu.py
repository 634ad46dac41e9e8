"""Measure the local back end on a GPU: tests, decoding steps against the bandwidth, methods against `generate`, a profile.

    python benchmarks/gpu.py           # at most 10 minutes; results in benchmarks/results/gpu
    python benchmarks/gpu.py --tiny    # the same on the CPU with very small models, to test this script

Parts run in order of value. Each has a separate process and a time limit, and writes its results as it goes. Models have
random weights, which are made on the device, in the shapes of Llama 3 with 1B and 8B parameters. The floor of a step is the
time to read the weights and the cache once, at the measured bandwidth of a copy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

import cards
import speed
from cards.backends.local.cache import TorchCache
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.loading import resolve_device
from cards.backends.local.readers import CausalScorer
from cards.boundaries import Entropy
from cards.engines.ask import Ask
from cards.engines.scheduler import Scheduler
from cards.engines.worker import DeviceWorker
from cards.events import Prompt, Response
from cards.sampling import Sampling
from workload import HERE, machine, prompts, random_engine, random_pair

T = TypeVar("T")
TOTAL = 590  # seconds for all parts
AIMS = {1: 1.5, 32: 1.7}  # a step of the largest model in multiples of the floor, by number of rows
DRAWN, BESIDE_VLLM = 1.2, 1.1  # aims: CARDS over plain sampling for a drawn token without the RM, this package over plain vLLM


@dataclass(frozen=True)
class Scale:
    """The sizes of a run."""

    device: str
    dtype: torch.dtype
    large: str
    small: str
    rows: Sequence[int]
    contexts: Sequence[int]
    steps: int
    max_tokens: int
    requests: int


FULL = Scale("cuda", torch.bfloat16, "random-8b", "random-1b", (1, 32, 8, 128), (512, 4096), 40, 64, 32)
TINY = Scale("cpu", torch.float32, "random-tiny", "random-tiny", (1, 2), (32,), 6, 6, 2)


class Report:
    """The results of a part, written to a file after each of them."""

    def __init__(self, part: str, scale: Scale, out: Path) -> None:
        self.file, self.found = out / f"{part}.json", cast("dict[str, Any]", {"on": machine(scale.device, str(scale.dtype))})

    def add(self, name: str, value: Any) -> None:
        self.found[name] = value
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(self.found, indent=1) + "\n")
        print(f"  {name}: {value}", flush=True)

    def judge(self, aim: str, limit: float, measured: float) -> None:
        """Say whether a ratio is at most the limit."""
        met = "met" if measured <= limit else "not met"
        self.add(f"aim: {aim}", f"at most {limit}, measured {measured:.2f}: {met}")


class Steps:
    """The times of the steps of a scheduler, in seconds."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler, self.step = scheduler, scheduler.step
        self.ends: list[tuple[int, float]] = []  # rows in the step, time at its end
        self.total = 0.0
        scheduler.step = self._timed  # type: ignore[method-assign]

    def _timed(self) -> None:
        start = time.perf_counter()
        self.step()
        end = time.perf_counter()
        self.total += end - start
        self.ends.append((len(self.scheduler.active), end))

    def between(self, rows: int) -> list[float]:
        """Return the times from the end of a step with this number of rows to the end of the next."""
        pairs = zip(self.ends, self.ends[1:], strict=False)
        return [end - before for (n, before), (m, end) in pairs if n == m == rows]


def bandwidth(device: str) -> float:
    """Return the bytes that a copy reads and writes in a second."""
    source = torch.ones(2**30 if device == "cuda" else 2**22, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        _synchronize(device)
        start = time.perf_counter()
        target.copy_(source)
        _synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(times)


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def draw(engine: TransformersEngine, rows: int, context: int, steps: int) -> list[float]:
    """Return the times of decoding steps of these rows around this context, in seconds, after a warm-up."""
    chance = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 10000, (context - steps // 2,), generator=chance).tolist()
    boundary = Entropy(1, steps, threshold=1e9)
    ask = Ask(Prompt("", tuple(ids)), Response(), steps, boundary=boundary, sampling=Sampling(0.7, 40), n=rows)
    found = Steps(engine.scheduler)

    async def run() -> None:
        async with aclosing(engine.propose(ask)) as batches:
            async for _ in batches:
                pass

    try:
        asyncio.run(run())
    finally:
        engine.scheduler.step = found.step  # type: ignore[method-assign]
    times = found.between(rows)
    return times[len(times) // 4 :]


def _in_worker(scale: Scale, make: Callable[[], T]) -> T:
    """Run in the worker thread of the device, where models belong."""
    return DeviceWorker.on(resolve_device(scale.device)).call(make)


def load_lm(shape: str, scale: Scale) -> TransformersEngine:
    context = max(scale.contexts) + 256
    options = {"slots": max(scale.rows), "context": context}
    engine = _in_worker(scale, lambda: random_engine(shape, scale.device, scale.dtype, **options))
    engine.end_ids = frozenset()
    return engine


def floor(engine: TransformersEngine, rows: int, context: int, speed_of_copy: float) -> float:
    """Return the seconds to read the weights and the cache of the rows once."""
    cache = cast(TorchCache, engine.scheduler.slots.cache)
    weights = sum(weight.nbytes for weight in engine.model.parameters())
    return float(weights + rows * context * cache.size / (cache.rows * cache.room)) / speed_of_copy


def measure_steps(shape: str, scale: Scale, report: Report) -> None:
    """Measure decoding steps with graphs, and some without them, against the floor."""
    copied = bandwidth(scale.device)
    report.add("bandwidth of a copy, GB/s", round(copied / 1e9))
    engine = load_lm(shape, scale)
    cache = cast(TorchCache, engine.scheduler.slots.cache)
    report.add("paged attention", cache.paged)
    for context in scale.contexts:
        for rows in scale.rows:
            least = floor(engine, rows, context, copied)
            seconds = statistics.median(draw(engine, rows, context, scale.steps))
            name = f"{rows} rows, {context} tokens"
            report.add(name, {"ms": 1e3 * seconds, "floor_ms": 1e3 * least, "ratio": seconds / least})
            if rows in AIMS and shape == scale.large:
                report.judge(f"a step of {shape} with {name}, in multiples of the floor", AIMS[rows], seconds / least)
    if cache.graphs is not None:
        report.add("graphs", len(cache.graphs.graphs))
    report.add("memory reserved, GB", torch.cuda.memory_reserved() / 1e9 if scale.device == "cuda" else None)
    cache.graphs = None
    for rows in scale.rows[:2]:
        report.add(
            f"{rows} rows, {scale.contexts[0]} tokens, without graphs, ms",
            1e3 * statistics.median(draw(engine, rows, scale.contexts[0], scale.steps)),
        )


def measure_methods(scale: Scale, report: Report) -> None:
    """Compare plain sampling, CARDS and best-of-8 with `generate`, and CARDS with plain sampling for a drawn token."""
    args = argparse.Namespace(device=scale.device, dtype=str(scale.dtype).removeprefix("torch."), reward=scale.small)
    args.slots, args.context, args.max_tokens, args.target, args.entropy_threshold = 64, 1024, scale.max_tokens, None, None
    arms = speed.Arms(scale.large, 2, args)
    rm = Steps(cast(CausalScorer, arms.reward.reader).scheduler)
    best = cards.Decoder(arms.engine, arms.reward, cards.methods.BestOfN(n=8))
    plain: dict[int, float] = {}
    for requests in (1, scale.requests):
        contestants: dict[str, Callable[[int], tuple[float, int, list[cards.Result]]]] = {
            "generate": lambda n: arms.in_worker(lambda: arms.generate(n)),
            "vanilla": arms.vanilla,
            "cards": arms.cards,
            "best-of-8": lambda n: arms.ours(best, n),
        }
        for arm, run in contestants.items():
            run(requests)  # warm-up
            rm.total = 0.0
            seconds, tokens, results = run(requests)
            entry = {"ms_per_kept_token": 1e3 * seconds / tokens}
            if results:
                drawn = sum(result.usage.lm_decoded_tokens for result in results)
                entry |= {
                    "ms_per_drawn_token": 1e3 * seconds / drawn,
                    "ms_of_rm_per_drawn_token": 1e3 * rm.total / drawn,
                    "drawn_per_kept_token": drawn / tokens,
                }
            report.add(f"{arm}, {requests} requests", entry)
            if arm == "vanilla":
                plain[requests] = seconds / drawn
            if arm == "cards":
                ratio = (seconds - rm.total) / drawn / plain[requests]
                report.judge(
                    f"CARDS over plain sampling, {requests} requests, time of a drawn token without the RM", DRAWN, ratio
                )


def measure_profile(scale: Scale, report: Report) -> None:
    """Break decoding steps of the large model down: kernels, gaps between them, and the time of the host."""
    from torch.profiler import ProfilerActivity, profile

    engine = load_lm(scale.large, scale)
    rows_of = scale.rows[:2]
    for rows in rows_of:
        seconds = statistics.median(draw(engine, rows, scale.contexts[0], scale.steps))
        waited: list[float] = []
        fetch = engine._fetch

        def timed(results: Any, fetch: Any = fetch, waited: list[float] = waited) -> Any:
            start = time.perf_counter()
            found = fetch(results)
            waited.append(time.perf_counter() - start)
            return found

        engine._fetch = timed  # type: ignore[method-assign]
        draw(engine, rows, scale.contexts[0], scale.steps)
        engine._fetch = fetch  # type: ignore[method-assign]
        report.add(
            f"{rows} rows: ms of a step, and of it the host waits",
            [1e3 * seconds, 1e3 * statistics.median(waited[len(waited) // 4 :])],
        )
        cuda = scale.device == "cuda"
        with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
            count = len(draw(engine, rows, scale.contexts[0], scale.steps)) * 4 / 3
        time_of = "self_device_time_total" if cuda else "self_cpu_time_total"
        kernels = sorted(found.key_averages(), key=lambda kernel: -getattr(kernel, time_of))
        busy = sum(getattr(kernel, time_of) for kernel in kernels) / 1e3 / count
        report.add(f"{rows} rows: ms of kernels in a step, with the reading of the prompt", busy)
        report.add(f"{rows} rows: kernels", {k.key[:80]: getattr(k, time_of) / 1e3 / count for k in kernels[:12]})


def measure_reward(scale: Scale, report: Report) -> None:
    """Measure how an RM reads texts, and then the next segment of each."""
    options: dict[str, Any] = {"slots": 64, "context": 1024}
    reward = _in_worker(scale, lambda: random_pair(scale.small, scale.device, scale.dtype, **options)[1])
    chance = torch.Generator().manual_seed(0)
    for count in scale.rows[:3]:
        reward.forget()
        texts = [torch.randint(10, 10000, (scale.contexts[0],), generator=chance).tolist() for _ in range(count)]
        start = time.perf_counter()
        asyncio.run(reward.reader.score(texts))
        times = [time.perf_counter() - start]
        for _ in range(6):
            texts = [[*text, *torch.randint(10, 10000, (10,), generator=chance).tolist()] for text in texts]
            start = time.perf_counter()
            asyncio.run(reward.reader.score(texts))
            times.append(time.perf_counter() - start)
        entry = {"ms to read": 1e3 * times[0], "ms for 10 more tokens": 1e3 * statistics.median(times[2:])}
        report.add(f"{count} texts of {scale.contexts[0]} tokens", entry)


def measure_vllm(scale: Scale, report: Report) -> None:
    """Compare plain sampling through this package with the same requests to vLLM itself."""
    if find_spec("vllm") is None:
        report.add("skipped", "vLLM is not installed")
        return
    from cards.backends.vllm.engine import VLLMEngine

    made = random_engine(scale.small, scale.device, scale.dtype, slots=1, context=512)
    with tempfile.TemporaryDirectory() as folder:
        made.model.save_pretrained(folder)
        made.tokenizer.save_pretrained(folder)
        del made
        engine = VLLMEngine.load(folder, slots=scale.requests, context=512)
        engine.end_ids = frozenset()
        decoder = cards.Decoder(engine, None, cards.methods.Vanilla(temperature=0.7, top_k=40))
        chosen = prompts()[: scale.requests]
        encoded = [engine.encode(prompt) for prompt in chosen]

        async def ask(tokens: Sequence[int], seed: int) -> None:
            sampling = {"temperature": 0.7, "top_k": 40, "seed": seed, "max_tokens": scale.max_tokens, "ignore_eos": True}
            async for _ in engine.host.generate(list(tokens), **sampling):
                pass

        async def all_plain() -> None:
            await asyncio.gather(*(ask(prompt.token_ids, i) for i, prompt in enumerate(encoded)))

        times: dict[str, list[float]] = {"vllm": [], "cards": []}
        for _ in range(4):  # the first warms up
            start = time.perf_counter()
            engine.host.submit(all_plain).result()
            times["vllm"].append(time.perf_counter() - start)
            start = time.perf_counter()
            decoder.batch(chosen, max_tokens=scale.max_tokens)
            times["cards"].append(time.perf_counter() - start)
        report.add("seconds", times)
        ratio = statistics.median(a / b for a, b in zip(times["cards"][1:], times["vllm"][1:], strict=True))
        report.judge("vLLM through this package over plain vLLM", BESIDE_VLLM, ratio)
        asyncio.run(decoder.aclose())


def run_tests(scale: Scale, report: Report) -> None:
    """Run the tests of `make test-cuda`."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "tests/with_cuda", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)
    report.add("tests", {"passed": done.returncode in (0, 5), "output": done.stdout[-3000:]})


PARTS: dict[str, tuple[int, Callable[[Scale, Report], None]]] = {  # time limit in seconds
    "tests": (150, run_tests),
    "steps-large": (110, lambda scale, report: measure_steps(scale.large, scale, report)),
    "methods": (130, measure_methods),
    "steps-small": (60, lambda scale, report: measure_steps(scale.small, scale, report)),
    "profile": (60, measure_profile),
    "reward": (40, measure_reward),
    "vllm": (150, measure_vllm),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="Run on the CPU with very small models, in this process.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--part", choices=PARTS, help="Run one part in this process.")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu")
    args = parser.parse_args(arguments)
    scale = TINY if args.tiny else FULL
    if args.part or args.tiny:
        for part in [args.part] if args.part else args.parts:
            print(part, flush=True)
            PARTS[part][1](scale, Report(part, scale, args.out))
        return
    end = time.monotonic() + TOTAL
    for part in args.parts:
        seconds = min(PARTS[part][0], end - time.monotonic())
        if seconds < 10:
            print(f"{part}: skipped, no time left")
            continue
        command = [sys.executable, __file__, "--part", part, "--out", str(args.out)]
        try:
            subprocess.run(command, timeout=seconds)
        except subprocess.TimeoutExpired:
            print(f"{part}: stopped after {seconds:.0f} s; see {args.out}")


if __name__ == "__main__":
    main()
