"""Attack a server: long prompts, clients that leave, shutdowns at bad moments, and a reward that fails.

    python benchmarks/attack.py              # all attacks
    python benchmarks/attack.py leave stop   # some of them

Each attack starts `cards serve` on the embedded pair in a separate process, and ends with what must hold:

    prompts   no response of /health takes longer than 250 ms while 16 clients send prompts of 1 MB
    leave     after 1,000 disconnects over all methods no cache slot, request or processor time is in use
    stop      the process exits with code 0 within --drain plus 1 s, and every client gets an end or an error
    secrets   no response contains a credential, a path or an error text of the reward's server
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

import httpx

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SIZE = 1_000_000  # characters of a long prompt; a body may have 2**20 bytes
HEALTH_SECONDS = 0.25
EXIT_SECONDS = 1.0
SECRET, UPSTREAM = "hunter2", "/srv/reward/scores.py exploded"


@dataclass
class Target:
    """A running server."""

    process: subprocess.Popen[bytes]
    url: str
    log: IO[str]

    def metric(self, name: str) -> float:
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.split()[1]) for line in lines if line.split(" ")[0] == name)

    def processor_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def read_log(self) -> str:
        self.log.seek(0)
        return self.log.read()


@contextmanager
def served(*options: str) -> Iterator[Target]:
    command = [sys.executable, "-m", "cards", "serve", "--port", "0", "--no-playground", *options]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        target = Target(process, "", log)
        try:
            while not target.url:
                assert process.poll() is None, target.read_log()
                time.sleep(0.2)
                started = [json.loads(line) for line in target.read_log().splitlines() if '"listening"' in line]
                target.url = f"http://127.0.0.1:{started[0]['port']}" if started else ""
            yield target
        finally:
            process.kill()
            process.wait()


async def send(target: Target, path: str, body: Any, *, leave_after: float | None = None, slow: float = 0.0) -> str:
    """Return the response to a request, or "" if the client leaves. `slow`: seconds until it begins to read."""
    data = (body if isinstance(body, str) else json.dumps(body)).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(target.url.rpartition(":")[2]))
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    try:
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        await asyncio.sleep(slow)
        with suppress(TimeoutError):
            return (await asyncio.wait_for(reader.read(), leave_after)).decode()
        return ""
    except ConnectionError as error:
        return f"({type(error).__name__})"
    finally:
        writer.close()


def long_prompts() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return requests with long prompts: their path and body, by name."""
    letters = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz0123456789 ", k=SIZE))
    texts = {"one letter": "a" * SIZE, "words": "word " * (SIZE // 5), "random": letters, "spaces": " " * SIZE}
    texts |= {"lines": "\n" * (SIZE // 2), "unicode": "\u00e9\u6f22\U0001f600" * (SIZE // 30)}
    found = {name: (CHAT, {"messages": [{"role": "user", "content": text}], "max_tokens": 4}) for name, text in texts.items()}
    found["32 long prompts"] = (TEXT, {"prompt": ["a b " * 7500] * 32, "max_tokens": 4})
    found["many messages"] = (CHAT, {"messages": [{"role": "user", "content": "a"}] * 30_000, "max_tokens": 4})
    parts = [{"role": "user", "content": [{"type": "text", "text": ""}] * 63}] * 500
    found["many parts"] = (CHAT, {"messages": parts, "max_tokens": 4})
    found["many prompts"] = (TEXT, {"prompt": ["a"] * 200_000, "max_tokens": 4})
    found["many stops"] = (TEXT, {"prompt": "a", "stop": ["a"] * 200_000, "max_tokens": 4})
    found["many settings"] = (TEXT, {"prompt": "a", "cards": {"settings": {f"k{i}": 1 for i in range(40_000)}}})
    found["long names"] = (TEXT, {"prompt": "a", "model": "x" * SIZE})
    found["long key"] = (TEXT, {"prompt": "a", "x" * SIZE: 1})
    found["long method"] = (TEXT, {"prompt": "a", "cards": {"method": "x" * SIZE}})
    return found


async def attack_prompts() -> None:
    with served() as target:
        slowest = 0.0

        async def watch() -> None:
            nonlocal slowest
            async with httpx.AsyncClient(base_url=target.url, timeout=120) as http:
                while True:
                    start = time.monotonic()
                    (await http.get("/health")).raise_for_status()
                    slowest = max(slowest, time.monotonic() - start)
                    await asyncio.sleep(0.02)

        worst = 0.0
        for name, (path, body) in long_prompts().items():
            data, slowest = json.dumps(body), 0.0
            watching = asyncio.create_task(watch())
            start = time.monotonic()
            replies = await asyncio.gather(*(send(target, path, data) for _ in range(16)))
            await asyncio.sleep(0.1)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            largest = max(map(len, replies))
            print(f"prompts: {name}: {time.monotonic() - start:.1f} s, {statuses(replies)}, /health {1000 * slowest:.0f} ms")
            require(largest < 20_000 or "200" in statuses(replies), f"a refusal echoes {largest} characters")
            worst = max(worst, slowest)
        require(worst <= HEALTH_SECONDS, f"/health took {worst:.2f} s")


async def attack_leave(count: int) -> None:
    with served("--max-queue", "1000") as target:
        [card] = httpx.get(f"{target.url}/v1/models").json()["data"]
        methods, chance, limit = card["cards"]["methods"], random.Random(0), asyncio.Semaphore(50)

        async def one(number: int) -> None:
            cards: dict[str, Any] = {"method": methods[number % len(methods)], "trace": chance.random() < 0.3}
            body = {"prompt": "The film", "max_tokens": 64, "seed": number, "cards": cards, "stream": chance.random() < 0.5}
            async with limit:
                await send(target, TEXT, body, leave_after=chance.random())

        await asyncio.gather(*(one(number) for number in range(count)))
        gauges = ("cards_rows_in_use", "cards_running_answers", "cards_queue_depth")
        for _ in range(100):
            left = {name: target.metric(name) for name in gauges}
            if not any(left.values()):
                break
            await asyncio.sleep(0.1)
        before = target.processor_seconds()
        await asyncio.sleep(4)
        busy = target.processor_seconds() - before
        print(f"leave: {count} disconnects over {len(methods)} methods: {left}, {busy:.2f} s of processor time in 4 s")
        require(not any(left.values()), "something is still in use")
        require(busy < 0.4, "something is still computing")
        require("traceback" not in target.read_log(), "the log has tracebacks")


def stops() -> dict[str, tuple[list[str], list[dict[str, Any]], dict[str, float], int, float]]:
    """Return options, requests, how clients behave, number of signals and seconds allowed for the exit, by name."""
    hung = {"prompt": "Once", "max_tokens": 1000, "cards": {"settings": {"boundary": "fixed:1"}}}
    mbr = {"prompt": "Once", "max_tokens": 400, "cards": {"method": "mbr", "settings": {"n": 64}}}
    slow = [{**hung, "stream": True, "seed": i} for i in range(36)]
    words = {"prompt": "word " * 2000, "stream": True}
    return {
        "idle": ([], [], {}, 1, 30),
        "streams that run and wait": (["--drain", "2"], slow, {}, 1, 2),
        "requests that run and wait": (["--drain", "2"], [one | {"stream": False} for one in slow], {}, 1, 2),
        "comparisons": (["--drain", "1"], [mbr] * 4, {}, 1, 1),
        "long prompts": (["--drain", "1"], [words] * 64, {}, 1, 1),
        "clients that read nothing": (["--drain", "1"], [one | {"cards": {"trace": True}} for one in slow], {"slow": 30}, 1, 1),
        "two signals": (["--drain", "30"], slow, {}, 2, 0.5),
    }


async def attack_stop() -> None:
    for name, (options, bodies, behaviour, signals, drain) in stops().items():
        with served("--limit-tokens", "1000", *options) as target:
            clients = [asyncio.create_task(send(target, TEXT, body, **behaviour)) for body in bodies]
            await asyncio.sleep(1.5)
            start = time.monotonic()
            for _ in range(signals):
                target.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.5 if signals > 1 else 0)
            code = await asyncio.to_thread(target.process.wait, 60)
            seconds, log = time.monotonic() - start, target.read_log()
            replies = [] if behaviour else await asyncio.gather(*clients)
            for client in clients:
                client.cancel()
            ended = sum("[DONE]" in reply or '"finish_reason"' in reply or '"error"' in reply for reply in replies)
            print(f"stop: {name}: exit code {code} after {seconds:.2f} s, {ended} of {len(replies)} ended, {statuses(replies)}")
            require(code == 0 and seconds <= drain + EXIT_SECONDS, "the exit was not clean or not in time")
            require(ended == len(replies), f"a client got no end: {next((r[-200:] for r in replies if r), '')!r}")
            require("traceback" not in log.lower(), f"the log has tracebacks: {log[-2000:]}")


class BrokenReward(BaseHTTPRequestHandler):
    """A reward server that fails in the way that `mode` says: a status, or text instead of scores."""

    mode: int | str = 200

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        good = json.dumps({"rewards": [float(len(text)) for text in asked["responses"]]})
        status = self.mode if isinstance(self.mode, int) else 200
        data = (good if self.mode == 200 else f"{UPSTREAM} {SECRET}").encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


async def attack_secrets() -> None:
    reward = ThreadingHTTPServer(("127.0.0.1", 0), BrokenReward)
    threading.Thread(target=reward.serve_forever, daemon=True).start()
    address = f"http://user:{SECRET}@127.0.0.1:{reward.server_address[1]}/score?key={SECRET}"
    for policy in ("closed", "plain"):
        with served("--reward", address, "--target", "1", "--on-reward-failure", policy) as target:
            seen: list[str] = []
            for mode in (200, 401, 404, 422, 500, "text"):
                BrokenReward.mode = mode
                for stream in (False, True):
                    for method in ("cards", "best-of-n", "nothing"):
                        body = {"prompt": "The film", "max_tokens": 8, "stream": stream, "cards": {"method": method}}
                        seen.append(await send(target, TEXT, body))
                ready = httpx.get(f"{target.url}/ready", timeout=60)
                seen.append(ready.text)
                require(
                    (ready.status_code == 200) == (mode == 200), f"/ready is {ready.status_code} when the reward gives {mode}"
                )
            seen += [httpx.get(target.url + path).text for path in ("/v1/models", "/v1/nothing", "/metrics", "/openapi.json")]
            told = [text for text in seen if any(word in text for word in (SECRET, UPSTREAM, "/srv/", "Traceback"))]
            print(f"secrets: {policy}: {len(seen)} responses, {len(told)} with secrets, {statuses(seen)}")
            require(not told, f"a response tells a secret: {told[:1]}")
            require(SECRET not in target.read_log().replace(f"{UPSTREAM} {SECRET}", ""), "the log has a credential")
    reward.shutdown()


def statuses(replies: list[str]) -> dict[str, int]:
    """Count the replies by status."""
    found = [reply.split(" ")[1] if reply.startswith("HTTP") else reply[:24] for reply in replies]
    return {status: found.count(status) for status in sorted(set(found)) if status.isdecimal() or status.startswith("(")}


def require(condition: bool, why: str) -> None:
    if not condition:
        raise SystemExit(f"FAILED: {why}")


def main() -> None:
    attacks: dict[str, Callable[[], Any]] = {"prompts": attack_prompts, "stop": attack_stop, "secrets": attack_secrets}
    parser = argparse.ArgumentParser()
    parser.add_argument("attacks", nargs="*", help="prompts, leave, stop, secrets; none: all")
    parser.add_argument("--disconnects", type=int, default=1000)
    args = parser.parse_args()
    attacks["leave"] = lambda: attack_leave(args.disconnects)
    for name in args.attacks or attacks:
        asyncio.run(attacks[name]())
    print("all held")


if __name__ == "__main__":
    main()
