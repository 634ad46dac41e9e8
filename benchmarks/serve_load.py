"""Measure the server under load, its growth over many requests, and its overhead over the library.

    python benchmarks/serve_load.py                          # 200 streaming clients for 60 s, 5,000 requests, the overhead
    python benchmarks/serve_load.py load --max-queue 32      # the first part; most clients are rejected for a while
    python benchmarks/serve_load.py --results benchmarks/results/serve_load.json    # the figures of docs/serve.md

`cards serve` runs in a separate process on the embedded pair. Load: each client sends a request, reads its stream to the end
and sends the next one; after status 429 it waits as long as Retry-After says. Every second client asks for JSON of a schema. A
response is complete if it has a finish reason and the end mark. Growth: requests of all kinds, some of which are refused or
left early, with the memory after each thousand; no schema is used twice. Overhead: the same request is sent alone, alternately
to the library in this process and to the server. The overhead of the server within one request is the time that its client
waited minus the seconds in the usage of the response.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
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
from typing import IO, Any

import httpx

import cards
from cards.errors import UnreachableTargetWarning
from workload import machine, prompts

QUESTIONS = prompts(turns=0)
REVIEW = {
    "type": "object",
    "properties": {"film": {"type": "string", "maxLength": 12}, "good": {"type": "boolean"}},
    "required": ["film", "good"],
    "additionalProperties": False,
}
PART = 1000  # requests between two measurements of the memory
GAUGES = ("cards_rows_in_use ", "cards_running_answers ", "cards_queue_depth ")


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
    structured: Counter[str] = field(default_factory=Counter)  # of responses with a schema: valid, cut by the token limit
    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    tokens: int = 0
    resident: list[float] = field(default_factory=list)  # MiB used by the server, every second


async def client(http: httpx.AsyncClient, number: int, until: float, tally: Tally, max_tokens: int) -> None:
    """Send a request, read its stream to the end, repeat."""
    asked = 0
    while time.monotonic() < until:
        question = QUESTIONS[(number + asked) % len(QUESTIONS)]
        body: dict[str, Any] = {"messages": question, "max_tokens": max_tokens, "seed": number * 1000 + asked, "stream": True}
        if structured := number % 2 == 1:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "review", "schema": REVIEW}}
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
        if complete and structured:
            text = "".join(json.loads(line[6:])["choices"][0]["delta"]["content"] for line in lines[:-1] if line[:1] == "d")
            outcome = "valid" if reason == "stop" and _fits(text) else "cut" if reason == "length" else "invalid"
            tally.structured[outcome] += 1
        if complete:
            tally.tokens += ended["cards"]["usage"]["completion_tokens"]
            tally.outcomes["cut by the deadline"] += ended["choices"][0]["cards"]["finish"] == "deadline"


def _fits(text: str) -> bool:
    """Return whether a text is JSON of the schema REVIEW."""
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return isinstance(found, dict) and found.keys() == {"film", "good"} and isinstance(found["good"], bool)


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


def mixed(number: int) -> tuple[str, dict[str, Any]]:
    """Return the path and the body of request `number` of a mix of all kinds."""
    chance = random.Random(number)
    tokens: dict[str, Any] = {"max_tokens": chance.randint(1, 8), "seed": number}
    messages = QUESTIONS[number % len(QUESTIONS)]
    text = str(messages[-1]["content"])
    method = chance.choice(("cards", "vanilla", "best-of-n", "smc", "args"))
    kinds: list[tuple[str, dict[str, Any]]] = [
        (
            "/v1/chat/completions",
            {"messages": messages, "stream": chance.random() < 0.5, "cards": {"method": method}, **tokens},
        ),
        ("/v1/completions", {"prompt": [text, text[:20]], "logprobs": 2, **tokens}),
        ("/v1/completions", {"prompt": text, "max_tokens": 0, "echo": True, "logprobs": 1}),
        ("/v1/responses", {"input": text, "stream": chance.random() < 0.5, "max_output_tokens": 4}),
        ("/tokenize", {"messages": messages}),
        ("/detokenize", {"tokens": [chance.randrange(1000) for _ in range(20)]}),
        ("/v1/chat/completions", {"messages": messages, "cards": {"settings": {"nothing": 1}}}),
        ("/v1/completions", {"prompt": f"{number} {text * 3}", **tokens, "max_tokens": 64}),
        ("/v1/chat/completions", {"messages": messages, "response_format": _numbered(number), **tokens, "max_tokens": 32}),
        (
            "/v1/chat/completions",
            {
                "messages": messages,
                "presence_penalty": chance.random(),
                "frequency_penalty": chance.random(),
                "repetition_penalty": 1 + chance.random() / 2,
                "logit_bias": {str(chance.randrange(1000)): -100},
                **tokens,
            },
        ),
    ]
    return kinds[number % len(kinds)]


def _numbered(number: int) -> dict[str, Any]:
    """Return a response format whose schema no other request has, so that caches of grammars are filled and emptied."""
    schema = {"type": "object", "properties": {f"f{number}": {"type": "boolean"}}, "required": [f"f{number}"]}
    return {"type": "json_schema", "json_schema": {"name": "numbered", "schema": schema}}


async def growth(url: str, pid: int, count: int) -> dict[str, Any]:
    """Send `count` mixed requests, 16 at a time. Return the statuses and the memory after each part."""
    statuses: Counter[str] = Counter()
    memory, limit = [resident(pid)], asyncio.Semaphore(16)

    async def one(http: httpx.AsyncClient, number: int) -> None:
        path, body = mixed(number)
        leaves = body.get("max_tokens") == 64 and number % 3 == 0
        async with limit:
            try:
                reply = await http.post(path, json=body, timeout=0.05 if leaves else 300)
                statuses[str(reply.status_code)] += 1
            except httpx.TimeoutException:
                statuses["left" if leaves else "time-out"] += 1

    async with httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_connections=None)) as http:
        for start in range(0, count, PART):
            await asyncio.gather(*(one(http, number) for number in range(start, min(start + PART, count))))
            memory.append(resident(pid))
    return {"requests": count, "statuses": dict(statuses), "resident_MiB": memory, "left_at_the_end": left(url)}


def left(url: str) -> dict[str, float]:
    """Return what is still in use, once the requests that clients left have ended."""
    for _ in range(50):
        lines = [line.split() for line in httpx.get(f"{url}/metrics").text.splitlines() if line.startswith(GAUGES)]
        found = {line[0]: float(line[1]) for line in lines}
        if not any(found.values()):
            break
        time.sleep(0.1)
    return found


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


def measure_load(options: argparse.Namespace) -> dict[str, Any]:
    with served("--max-queue", str(options.max_queue)) as (pid, url):
        asyncio.run(load(url, pid, 8, 5, options.max_tokens))  # warm up
        tally = asyncio.run(load(url, pid, options.clients, options.seconds, options.max_tokens))
        remaining = left(url)
    memory, percentiles = tally.resident, statistics.quantiles(tally.seconds, n=100)
    return {
        "outcomes": dict(tally.outcomes),
        "structured": dict(tally.structured),
        "answers_per_second": tally.outcomes["complete"] / options.seconds,
        "tokens_per_second": tally.tokens / options.seconds,
        "seconds": {"p50": percentiles[49], "p95": percentiles[94], "p99": percentiles[98]},
        "first_text_p50": statistics.median(tally.first),
        "resident_MiB": {"start": memory[0], "middle": memory[len(memory) // 2], "end": memory[-1], "highest": max(memory)},
        "left_at_the_end": remaining,
    }


def measure_growth(options: argparse.Namespace) -> dict[str, Any]:
    with served("--max-queue", "64") as (pid, url):
        return asyncio.run(growth(url, pid, options.mixed))


def measure_overhead(options: argparse.Namespace) -> dict[str, Any]:
    with served() as (_, url):
        return overhead(url, options.requests)


def main() -> None:
    parts = {"load": measure_load, "growth": measure_growth, "overhead": measure_overhead}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"{', '.join(parts)}; none: all")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--max-queue", type=int, default=256)
    parser.add_argument("--mixed", type=int, default=5000, help="Number of mixed requests.")
    parser.add_argument("--requests", type=int, default=60, help="Number of requests for the overhead.")
    parser.add_argument("--results", type=Path, help="JSON file for the results; parts that do not run stay.")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UnreachableTargetWarning)
    report: dict[str, Any] = {}
    if options.results is not None and options.results.exists():
        report = {name: found for name, found in json.loads(options.results.read_text()).items() if name in parts}
    for name in options.parts or parts:
        before = os.getloadavg()
        given = {key: value for key, value in vars(options).items() if key not in ("parts", "results")}
        found = parts[name](options)
        loads = {"before": before, "after": os.getloadavg()}
        report[name] = found | {"machine": machine("cpu", "float32"), "load_average": loads, "options": given}
        print(json.dumps({name: report[name]}, indent=1), flush=True)
        if options.results is not None:
            options.results.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
