"""Measure tokens per second and time to the first segment of `cards serve`: transformers and vLLM, cards and vanilla.

python benchmarks/serving.py --vllm .venv-vllm/bin/python

The servers run one at a time, because they share the machine. 1, 8 and 32 clients stream responses; each sends its next request
when its response is complete. The rounds of the methods alternate, and figures are medians over rounds. Tokens are those of the
responses, without wasted tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from workload import machine, prompts

METHODS = {"plain": {"method": "vanilla"}, "cards": {"method": "cards"}}
START = 300  # maximum seconds until a server is ready


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", help="Python of an environment with vLLM. Without it, only transformers is measured.")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--answers", type=int, default=3, help="Responses per client and round.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path, help="File for the figures.")
    given = parser.parse_args()
    servers = {"transformers": (sys.executable, "tiny")} | ({"vllm": (given.vllm, "vllm:tiny")} if given.vllm else {})
    found: list[dict[str, Any]] = []
    for name, (python, model) in servers.items():
        with serving(python, model, given.dtype) as address:
            found += asyncio.run(measure(name, address, given))
    about = machine("cpu", given.dtype) | {"rounds": given.rounds, "answers": given.answers, "max_tokens": given.max_tokens}
    print(" ".join(f"{key}={value}" for key, value in about.items()))
    print(f"{'engine':14} {'method':8} {'clients':>7} {'tokens/s':>9} {'first segment, s':>17} {'decoded/kept':>13}")
    for row in found:
        figures = f"{row['tokens_per_second']:9.0f} {row['first_segment']:17.3f} {row['drawn_per_kept']:13.2f}"
        print(f"{row['engine']:14} {row['method']:8} {row['clients']:7} {figures}")
    if given.json:
        given.json.write_text(json.dumps({"about": about, "rows": found}, indent=1) + "\n", encoding="utf-8")


@contextmanager
def serving(python: str, model: str, dtype: str) -> Iterator[str]:
    """Run `cards serve` in a separate process until the end of the block; yield its address."""
    command = [python, "-m", "cards", "serve", "--model", model, "--reward", model, "--dtype", dtype, "--slots", "32"]
    command += ["--port", "0", "--no-playground", "--name", "tiny"]
    log = Path(f"/tmp/serving-{os.getpid()}.log")
    with log.open("w") as written:
        process = subprocess.Popen(command, stderr=written, stdout=written)
    try:
        yield address_of(process, log)
    finally:
        process.terminate()
        process.wait(60)
        log.unlink()


def address_of(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return the address of the server, once it is ready."""
    end = time.monotonic() + START
    while time.monotonic() < end and process.poll() is None:
        if ports := re.findall(r'"port": (\d+)', log.read_text()):
            address = f"http://127.0.0.1:{ports[-1]}"
            try:
                if httpx.get(f"{address}/ready").status_code == 200:
                    return address
            except httpx.TransportError:
                pass
        time.sleep(0.5)
    raise SystemExit(f"The server did not start:\n{log.read_text()[-3000:]}")


async def measure(engine: str, address: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    asked = prompts(turns=1)
    rows = []
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=httpx.Limits(max_connections=64)) as client:
        for clients in given.clients:
            rounds: dict[str, list[tuple[float, float, float]]] = {method: [] for method in METHODS}
            for number in range(given.rounds + 1):  # the first is a warm-up
                for method, extra in METHODS.items():
                    figures = await one_round(client, asked, extra, clients, number, given)
                    if number:
                        rounds[method].append(figures)
            for method, figures_of in rounds.items():
                speed, first, drawn = (median(column) for column in zip(*figures_of, strict=True))
                row = {"engine": engine, "method": method, "clients": clients}
                rows.append(row | {"tokens_per_second": speed, "first_segment": first, "drawn_per_kept": drawn})
    return rows


async def one_round(
    client: httpx.AsyncClient, asked: list[Any], extra: dict[str, Any], clients: int, number: int, given: argparse.Namespace
) -> tuple[float, float, float]:
    """Return tokens per second, median seconds to the first segment, and decoded tokens per kept token."""
    firsts: list[float] = []
    kept = drawn = 0

    async def one(i: int) -> None:
        nonlocal kept, drawn
        for k in range(given.answers):
            at = i * given.answers + k
            body = {"model": "tiny", "messages": asked[at % len(asked)], "max_tokens": given.max_tokens, "stream": True}
            body |= {"seed": number * 1000 + at, "cards": extra}
            start, first, last = time.perf_counter(), None, {}
            async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                response.raise_for_status()
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        last = json.loads(line.removeprefix("data: "))
                        if first is None and last["choices"] and last["choices"][0]["delta"].get("content"):
                            first = time.perf_counter() - start
            usage = last["cards"]["usage"]
            firsts.append(first if first is not None else time.perf_counter() - start)
            drawn += usage["lm_decoded_tokens"]
            kept += usage["lm_decoded_tokens"] - usage["lm_wasted_tokens"]

    begin = time.perf_counter()
    await asyncio.gather(*(one(i) for i in range(clients)))
    return kept / (time.perf_counter() - begin), median(firsts), drawn / kept


if __name__ == "__main__":
    main()
