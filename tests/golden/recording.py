"""Run a golden case on the code that is installed and return what it gave, as JSON-ready data without times and versions."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence, Set
from contextlib import chdir, contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from cases import CACHE, COMMANDS, FILES, JUDGE, MAX_TOKENS, METHODS, PROMPTS, REQUESTS, SEED, SERVE, SEVERAL
from typer.testing import CliRunner

import cards
from cards.registry import make_method

MASKED = "masked"
TIMES = re.compile(r"seconds|latency|^(version|versions|machine|created|date)$")
UNORDERED = ("evaluate.jsonl",)  # rows as they come, and those of --gold before those of --harm or after them
DATA = (".jsonl", ".json", ".csv")
VERDICTS = ("Accepted", "Rejected", "Fallback")


def masked(value: Any, varies: Set[str] = frozenset()) -> Any:
    """The value without seconds, versions, machines and the keys that vary, and with short floats."""
    if isinstance(value, dict):
        error = value.keys() >= {"message", "type"}  # its message is for people, and reworded
        hidden = {*varies, "message"} if error else varies
        return {k: MASKED if k in hidden or TIMES.search(k) else masked(inner, varies) for k, inner in value.items()}
    if isinstance(value, list | tuple):
        return [masked(inner, varies) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.7g}")
    return value


# Methods


def method(name: str) -> dict[str, Any]:
    """The responses of a case: requests alone with their verdicts, then all of them together."""
    case = METHODS[name]
    engine = cards.load_engine("tiny", **case.engine)
    reward = None if case.reward is None else cards.load_reward(case.reward)
    decoder = cards.Decoder(engine, reward, make_method(case.method, **case.settings))
    prompts = PROMPTS[: case.prompts] * case.repeats
    options = {"max_tokens": MAX_TOKENS, "trace": True, **case.options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # many fallbacks
        alone, verdicts = [], []
        for number, prompt in enumerate(prompts):
            events = list(decoder.stream(prompt, seed=SEED + number, **options))
            alone.append(_result(events[-1].result, case.varies))  # type: ignore[union-attr]
            verdicts.append(_verdicts(events))
        called = _result(decoder(prompts[0], seed=SEED, **options), case.varies | CACHE)
        results = asyncio.run(_together(decoder, prompts, options))
        together = [_result(result, case.together) for result in results]
    asyncio.run(decoder.aclose())
    return {"alone": alone, "verdicts": verdicts, "called": called, "together": together}


async def _together(decoder: cards.Decoder, prompts: Sequence[Any], options: dict[str, Any]) -> list[cards.Result]:
    requests = [decoder.agenerate(prompt, seed=SEED + number, **options) for number, prompt in enumerate(prompts)]
    return await asyncio.gather(*requests)


def _result(result: Any, varies: Set[str]) -> Any:
    found = asdict(result)
    usage = found["usage"].items()
    found["usage"] = {key: value for key, value in usage if key not in varies and not key.endswith("seconds")}
    return masked(found)


def _verdicts(events: Sequence[Any]) -> list[dict[str, Any]]:
    """What became of each candidate. Of candidates with the same tokens, rounding decides which one has the higher reward:
    they all have the number of the first."""
    found: list[dict[str, Any]] = []
    first: dict[Any, int] = {}
    for event in events:
        if type(event).__name__ not in VERDICTS:
            continue
        values = {key: value for key, value in asdict(event).items() if key != "segment"}
        *place, number = values.items()
        twins = [values[number[0]], first.get((*place, event.segment.token_ids), number[1])]
        first[(*place, event.segment.token_ids)] = min(twins)
        found.append({"event": type(event).__name__, "tokens": event.segment.token_ids, **values})
    for verdict in found:
        *place, number = list(verdict.items())[2:]
        verdict[number[0]] = first[(*place, verdict.pop("tokens"))]
    return found


# Commands


def command(name: str) -> dict[str, Any]:
    """What the steps of a case print and write."""
    from cards.cli import app

    environment = {"COLUMNS": "4000" if name == "methods" else "120", "NO_COLOR": "1", "TERM": "dumb"}
    varies = CACHE if name in SEVERAL else frozenset[str]()
    steps, files = [], {}
    with tempfile.TemporaryDirectory() as folder, chdir(folder), judging() as address:
        for file, lines in FILES.items():
            dumped = [line if file.endswith(".txt") else json.dumps(line) for line in lines]
            Path(file).write_text("".join(f"{line}\n" for line in dumped), encoding="utf-8")
        for step in COMMANDS[name]:
            arguments = [argument.replace(JUDGE, f"{address}/v1") for argument in step]
            ran = CliRunner().invoke(app, arguments, env=environment)
            if ran.exception is not None and not isinstance(ran.exception, SystemExit):
                raise ran.exception
            steps.append({"exit_code": ran.exit_code, "stdout": masked(_printed(step, ran.stdout), varies)})
        for path in sorted(Path().iterdir()):
            if path.name not in FILES and not path.name.endswith(".lock"):
                files[path.name] = masked(_content(path, address), varies)
    return {"steps": steps, "files": files}


def _printed(step: Sequence[str], text: str) -> Any:
    """JSON is parsed, the table of methods is read; tables with seconds are left to the files that hold the same."""
    if "--json" in step:
        return json.loads(text) if text.strip() else None
    if step[0] == "methods":
        return _table(text)
    return text if step[0] == "generate" else None


def _table(text: str) -> dict[str, Any]:
    """The needs and the default settings of each method; its description is for people, and changes."""
    found: dict[str, Any] = {}
    name = ""
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split("[│┃|]", line)]
        if len(cells) < 5 or cells[1] == "method":
            continue
        name = cells[1] or name
        row = found.setdefault(name, {"needs": [], "settings": {}})
        row["needs"] += [cells[2]] if cells[2] else []
        row["settings"] |= dict(re.findall(r"(?<!\S)(--[a-z-]+)=(\S*)", cells[3]))
    return {name: {**row, "needs": sorted(row["needs"])} for name, row in found.items()}


def _content(path: Path, address: str) -> Any:
    """The data of a file, or None for others, of which only the name is recorded."""
    if path.suffix not in DATA:
        return None
    text = path.read_text(encoding="utf-8").replace(address, "http://judge")
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in text.splitlines()]
        return sorted(rows, key=_strings) if path.name in UNORDERED else rows
    if path.suffix == ".json":
        return json.loads(text)
    return [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(io.StringIO(text))]


def _strings(row: dict[str, Any]) -> list[str]:
    return [value for value in row.values() if isinstance(value, str)]


def _number(text: str) -> Any:
    try:
        return float(text)
    except (TypeError, ValueError):
        return text


class Judge(BaseHTTPRequestHandler):
    """A chat model that prefers the longer response, rates by length, and finds nothing unsafe."""

    def do_GET(self) -> None:
        self._say({"data": [{"id": "length-judge"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        shown = re.findall(r"<answer[^>]*>\n(.*?)\n</answer>", body["messages"][-1]["content"], re.S)
        lengths = [len(answer) for answer in shown]
        reply: dict[str, Any] = {"score": 1 + min(9, max(lengths, default=0) // 10), "safe": True, "unsafe": False}
        if len(lengths) == 2:
            reply = {"better": 0 if lengths[0] == lengths[1] else 1 + (lengths[1] > lengths[0])}
        self._say({"choices": [{"message": {"role": "assistant", "content": json.dumps(reply)}}]})

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def _say(self, answer: Any) -> None:
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def judging() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Judge) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


# Server


@contextmanager
def serving() -> Iterator[str]:
    """The address of `cards serve` in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [sys.executable, "-m", "cards", "serve", "--port", str(port), *SERVE]
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 120
        while True:
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < end, "the server did not start"
            try:
                httpx.get(f"{url}/v1/models", timeout=5)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def request(url: str, name: str) -> dict[str, Any]:
    """The status and the body of a reply; a stream is the list of its chunks."""
    path, body = REQUESTS[name]
    reply = httpx.get(url + path, timeout=60) if body is None else httpx.post(url + path, json=body, timeout=60)
    found: Any
    if reply.headers["content-type"].startswith("text/event-stream"):
        lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
        found = [line if line == "[DONE]" else json.loads(line) for line in lines]
    else:
        found = reply.json()
    for part in found if isinstance(found, list) else [found]:
        if isinstance(part, dict) and str(part.get("object", "")).startswith(("chat.", "text_")):
            part["id"] = MASKED
    return {"status": reply.status_code, "body": masked(found, CACHE)}
