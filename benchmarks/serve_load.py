"""Measure the server under load, and its overhead over the library.

    python benchmarks/serve_load.py                    # 200 streaming clients for 60 s, then the overhead
    python benchmarks/serve_load.py --max-queue 32     # the same; most clients are rejected for a while

`cards serve` runs in a separate process on the embedded pair. Each client sends a request, reads its stream to the end and
sends the next one; after status 429 it waits as long as Retry-After says. A response is complete if it has a finish reason
and the end mark. Overhead: the same request is sent alone, alternately to the library in this process and to the server.
The overhead of the server within one request is the time that its client waited minus the seconds in the usage of the
response.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx

import cards
from cards.errors import UnreachableTargetWarning
from workload import machine, prompts

QUESTIONS = prompts(turns=0)


@contextmanager
def served(*options: str) -> Iterator[tuple[int, str]]:
    """Yield the process id and the address of a server."""
    command = [sys.executable, "-m", "cards", "serve", "--port", "0", "--no-playground", *options]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stderr=log, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            yield process.pid, f"http://127.0.0.1:{_port(log)}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _port(log: IO[str]) -> int:
    """Return the port of the server, once its log shows it."""
    while True:
        time.sleep(0.2)
        log.seek(0)
        for line in log:
            if '"listening"' in line:
                return int(json.loads(line)["port"])


@dataclass
class Tally:
    """Observations of the clients."""

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    tokens: int = 0
    resident: list[float] = field(default_factory=list)  # MiB used by the server, every second


async def client(http: httpx.AsyncClient, number: int, until: float, tally: Tally, max_tokens: int) -> None:
    """Send a request, read its stream to the end, repeat."""
    asked = 0
    while time.monotonic() < until:
        question = QUESTIONS[(number + asked) % len(QUESTIONS)]
        body = {"messages": question, "max_tokens": max_tokens, "seed": number * 1000 + asked, "stream": True}
        asked += 1
        start = time.monotonic()
        try:
            async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                if answer.status_code == 429:
                    tally.outcomes["429"] += 1
                    await asyncio.sleep(min(float(answer.headers["Retry-After"]), until - time.monotonic()))
                    continue
                if answer.status_code != 200:
                    tally.outcomes[str(answer.status_code)] += 1
                    continue
                lines = [line async for line in _timed(answer, start, tally)]
        except httpx.HTTPError as error:
            tally.outcomes[type(error).__name__] += 1
            continue
        tally.seconds.append(time.monotonic() - start)
        ended = json.loads(lines[-2].removeprefix("data: ")) if len(lines) > 1 else {}
        reason = ended.get("choices", [{}])[0].get("finish_reason") if "choices" in ended else None
        complete = lines[-1] == "data: [DONE]" and reason is not None
        tally.outcomes["complete" if complete else "incomplete"] += 1
        if complete:
            tally.tokens += ended["cards"]["usage"]["completion_tokens"]
            tally.outcomes["cut by the deadline"] += ended["choices"][0]["cards"]["finish"] == "deadline"


async def _timed(answer: httpx.Response, start: float, tally: Tally) -> AsyncIterator[str]:
    first = True
    async for line in answer.aiter_lines():
        if line:
            if first:
                tally.first.append(time.monotonic() - start)
            first = False
            yield line


async def load(url: str, pid: int, clients: int, seconds: float, max_tokens: int) -> Tally:
    tally, until = Tally(), time.monotonic() + seconds

    async def watch() -> None:
        while True:
            tally.resident.append(resident(pid))
            await asyncio.sleep(1)

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
        watching = asyncio.create_task(watch())
        await asyncio.gather(*(client(http, i, until, tally, max_tokens) for i in range(clients)))
        watching.cancel()
    return tally


def resident(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def overhead(url: str, requests: int) -> dict[str, float]:
    """Return medians over requests, without the first few."""
    library = cards.Decoder("tiny", "tiny", cards.CARDS(width=1))
    waits, ratios, alone = [], [], []
    with httpx.Client(base_url=url, timeout=60) as http:
        for i in range(requests + 5):
            question, options = QUESTIONS[i % len(QUESTIONS)], {"max_tokens": 32, "seed": i}
            start = time.perf_counter()
            own = library(question, **options)
            between = time.perf_counter()
            body = {"messages": question, "cards": {"settings": {"width": 1}}, **options}
            answer = http.post("/v1/chat/completions", json=body).json()
            end = time.perf_counter()
            assert answer["choices"][0]["message"]["content"] == own.text
            if i >= 5:
                waits.append(end - between - answer["usage"]["seconds"])
                ratios.append((end - between) / (between - start))
                alone.append(between - start)
    return {
        "milliseconds_beyond_the_books": 1000 * statistics.median(waits),
        "server_over_library": statistics.median(ratios),
        "library_milliseconds": 1000 * statistics.median(alone),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--max-queue", type=int, default=256)
    parser.add_argument("--requests", type=int, default=60, help="Number of requests for the overhead.")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UnreachableTargetWarning)
    before = os.getloadavg()
    with served("--max-queue", str(options.max_queue)) as (pid, url):
        asyncio.run(load(url, pid, 8, 5, options.max_tokens))  # warm up
        tally = asyncio.run(load(url, pid, options.clients, options.seconds, options.max_tokens))
        metrics = httpx.get(f"{url}/metrics").text
    with served() as (_, url):
        costs = overhead(url, options.requests)
    left = {
        line.split()[0]: float(line.split()[1])
        for line in metrics.splitlines()
        if line.startswith(("cards_rows_in_use ", "cards_running_answers ", "cards_queue_depth "))
    }
    memory, percentiles = tally.resident, statistics.quantiles(tally.seconds, n=100)
    report = {
        "machine": machine("cpu", "float32"),
        "load_average": {"before": before, "after": os.getloadavg()},
        "options": vars(options),
        "outcomes": dict(tally.outcomes),
        "answers_per_second": tally.outcomes["complete"] / options.seconds,
        "tokens_per_second": tally.tokens / options.seconds,
        "seconds": {"p50": percentiles[49], "p95": percentiles[94], "p99": percentiles[98]},
        "first_text_p50": statistics.median(tally.first),
        "resident_MiB": {"start": memory[0], "middle": memory[len(memory) // 2], "end": memory[-1], "highest": max(memory)},
        "left_at_the_end": left,
        "overhead": costs,
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
