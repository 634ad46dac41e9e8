"""Run real clients against a real server, each in its own environment.

    python tests/clients/run.py                          # all clients
    python tests/clients/run.py openai litellm           # some of them
    python tests/clients/run.py --results FILE           # also write what works, for the table in docs/clients.md

The server is `cards serve` with the embedded models. Environments are made in `.venv-clients` and used again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ENVIRONMENTS = Path(".venv-clients")
INSTALL = ("-m", "pip", "install", "-qq", "--disable-pip-version-check")


@dataclass(frozen=True)
class Client:
    """A client: its title, package and version, other packages, and options of its server."""

    title: str
    package: str
    version: str
    program: str
    others: tuple[str, ...] = ()
    first: tuple[str, ...] = ()  # packages that are installed before
    options: tuple[str, ...] = ()


TOLERANT = ("--unknown-fields", "ignore")
CLIENTS = {
    "openai": Client("OpenAI for Python", "openai", "3.57.0", "openai_python.py"),
    "node": Client("OpenAI for Node", "openai", "6.49.0", "openai_node.mjs"),
    "langchain-openai": Client("LangChain", "langchain-openai", "1.7.4", "langchain_client.py"),
    "litellm": Client("LiteLLM", "litellm", "1.110.2", "litellm_client.py"),
    "llama-index": Client("LlamaIndex", "llama-index-llms-openai-like", "0.8.1", "llama_index_client.py"),
    "instructor": Client("Instructor", "instructor", "1.17.0", "instructor_client.py"),
    "lm-eval": Client("lm-evaluation-harness", "lm_eval[api]", "0.4.13", "lm_eval_client.py"),
    "its_hub": Client("its_hub", "its_hub[lm]", "1.2.0", "its_hub_client.py", options=TOLERANT),
    "optillm": Client("optillm", "optillm", "0.4.0", "optillm_client.py", first=("torch==2.13.0",)),
}


def prepared(name: str, client: Client) -> list[str]:
    """Return the command of a client's program, with its environment made if it is not there yet."""
    folder, marker = ENVIRONMENTS / name, ENVIRONMENTS / name / f".installed-{client.version}"
    program = str(HERE / client.program)
    if client.program.endswith(".mjs"):
        if not marker.exists():
            folder.mkdir(parents=True, exist_ok=True)
            wanted = f"{client.package}@{client.version}"
            subprocess.run(["npm", "install", "--silent", "--prefix", str(folder), wanted], check=True)
            marker.touch()
        copy = folder / client.program  # Node looks for packages beside the program
        copy.write_text(Path(program).read_text())
        return ["node", str(copy)]
    python = folder / "bin" / "python"
    if not marker.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        for packages in (client.first, (f"{client.package}=={client.version}", *client.others)):
            if packages:
                subprocess.run([str(python), *INSTALL, *packages], check=True)
        marker.touch()
    return [str(python), program]


@contextmanager
def served(options: tuple[str, ...]) -> Iterator[str]:
    """Yield the address of a server."""
    command = [sys.executable, "-m", "cards", "serve", "--port", "0", "--no-playground", *options]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            while True:
                time.sleep(0.2)
                log.seek(0)
                lines = [line for line in log if '"listening"' in line]
                if lines:
                    break
                log.seek(0)
                assert process.poll() is None, log.read()
            yield f"http://127.0.0.1:{json.loads(lines[0])['port']}"
        finally:
            process.terminate()
            process.wait(60)


def run(name: str, client: Client, url: str) -> dict[str, Any]:
    """Return the row of a client: its features, each with an error or None."""
    command = prepared(name, client)
    print(f"{client.title} {client.version}", flush=True)
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run([*command, url], capture_output=True, text=True, env={**os.environ, **quiet}, timeout=600)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"feature"')]
    if done.returncode or not found:
        raise SystemExit(f"{client.title}: the program failed.\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    for one in found:
        print(f"  {one['feature']}: {one['error'] or 'works'}", flush=True)
    features = {one["feature"]: one["error"] for one in found}
    return {"title": client.title, "version": client.version, "options": list(client.options), "features": features}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clients", nargs="*", help=f"none: all of {', '.join(CLIENTS)}")
    parser.add_argument("--results", type=Path, help="JSON file for the results.")
    options = parser.parse_args()
    if unknown := set(options.clients) - CLIENTS.keys():
        parser.error(f"unknown clients: {', '.join(sorted(unknown))}")
    chosen = {name: CLIENTS[name] for name in options.clients or CLIENTS}
    with ExitStack() as servers:
        urls = {given: servers.enter_context(served(given)) for given in {client.options for client in chosen.values()}}
        rows = [run(name, client, urls[client.options]) for name, client in chosen.items()]
    if options.results is not None:
        made = {"date": datetime.now(UTC).date().isoformat(), "clients": rows}
        options.results.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    failed = [f"{row['title']}: {name}" for row in rows for name, error in row["features"].items() if error]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")
    print(f"{sum(len(row['features']) for row in rows)} features of {len(rows)} clients work")


if __name__ == "__main__":
    main()
