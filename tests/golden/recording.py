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
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from typer.testing import CliRunner

import cards
from cards.registry import make_method
from cases import COMMANDS, FILES, JUDGE, MAX_TOKENS, METHODS, PROMPTS, REQUESTS, SEED, SERVE

MASKED = "masked"
TIMES = re.compile(r"seconds$|^(version|versions|machine|created|digest|date)$")
DATA = (".jsonl", ".json", ".csv")
VERDICTS = ("Accepted", "Rejected", "Fallback")


def masked(value: Any) -> Any:
    """The value without seconds, versions and machines, and with short floats."""
    if isinstance(value, dict):
        return {key: MASKED if TIMES.search(str(key)) else masked(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [masked(inner) for inner in value]
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
            alone.append(_result(events[-1].result))  # type: ignore[union-attr]
            verdicts.append([_verdict(event) for event in events if type(event).__name__ in VERDICTS])
        called = _result(decoder(prompts[0], seed=SEED, **options))
        together = [_result(result) for result in decoder.batch(prompts, seed=SEED, progress=False, **options)]
    asyncio.run(decoder.aclose())
    return {"alone": alone, "verdicts": verdicts, "called": called, "together": together}


def _result(result: Any) -> Any:
    found = asdict(result)
    found["usage"] = {key: value for key, value in found["usage"].items() if not key.endswith("seconds")}
    return masked(found)


def _verdict(event: Any) -> dict[str, Any]:
    return {"event": type(event).__name__} | {key: value for key, value in asdict(event).items() if key != "segment"}


# Commands


def command(name: str) -> dict[str, Any]:
    """What the steps of a case print and write."""
    from cards.cli import app

    environment = {"COLUMNS": "4000" if name == "methods" else "120", "NO_COLOR": "1", "TERM": "dumb"}
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
            steps.append({"exit_code": ran.exit_code, "stdout": _printed(step, ran.stdout)})
        for path in sorted(Path().iterdir()):
            if path.name not in FILES and not path.name.endswith(".lock"):
                files[path.name] = masked(_content(path, address))
    return {"steps": steps, "files": files}


def _printed(step: Sequence[str], text: str) -> Any:
    """JSON is parsed, the table of methods is read; tables with seconds are left to the files that hold the same."""
    if "--json" in step:
        return masked(json.loads(text)) if text.strip() else None
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
        row = found.setdefault(name, {"needs": [], "settings": []})
        row["needs"] += [cells[2]] if cells[2] else []
        row["settings"] += re.findall(r"(?<!\S)--[a-z-]+=\S*", cells[3])
    return found


def _content(path: Path, address: str) -> Any:
    """The data of a file, or None for others, of which only the name is recorded."""
    if path.suffix not in DATA:
        return None
    text = path.read_text(encoding="utf-8").replace(address, "http://judge")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    if path.suffix == ".json":
        return json.loads(text)
    return [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(io.StringIO(text))]


def _number(text: str) -> Any:
    try:
        return float(text)
    except (TypeError, ValueError):
        return text


class Judge(BaseHTTPRequestHandler):
    """A chat model that prefers the longer response, rates by length, and finds nothing unsafe."""

    def do_GET(self) -> None:  # noqa: N802
        self._say({"data": [{"id": "length-judge"}]})

    def do_POST(self) -> None:  # noqa: N802
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
        told = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
        found = [told_one if told_one == "[DONE]" else json.loads(told_one) for told_one in told]
    else:
        found = reply.json()
    for part in found if isinstance(found, list) else [found]:
        if isinstance(part, dict) and "id" in part and part.get("object") not in (None, "model", "list"):
            part["id"] = MASKED
        if isinstance(part, dict) and "error" in part:
            part["error"]["message"] = MASKED  # for people, and reworded now and then
    return {"status": reply.status_code, "body": masked(found)}
