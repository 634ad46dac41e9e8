"""Paths, logging, seeding and row hashing shared by every training stage."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_DATA = ROOT.parent / "shared" / "data"
DEFAULT_OUT = ROOT / "src" / "cards" / "tiny"
DEFAULT_RUNS = ROOT / "training" / "runs"

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """The options of every stage."""

    data: Path = DEFAULT_DATA
    out: Path = DEFAULT_OUT
    runs: Path = DEFAULT_RUNS
    seed: int = 1
    scale: float = 1.0

    def part(self, count: int) -> int:
        """Scale a number of steps or samples for a trial run."""
        return max(1, round(count * self.scale))

    def finish(self, stage: str, figures: dict[str, Any]) -> None:
        write_json(figures, self.done_file(stage))

    def done_file(self, stage: str) -> Path:
        return self.runs / f"{stage}.done.json"


def setup(seed: int) -> None:
    """Use one thread per process, so that two stages can run side by side on two cores."""
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def read_rows(path: Path) -> Iterator[Row]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def hash_unit(text: str) -> float:
    """Hash the text to a number in [0, 1), for splits that do not depend on the order of rows."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def save_atomic(state: Any, path: Path) -> None:
    """Write atomically, so that a stage stopped during a write keeps its previous checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


class Checkpoint:
    """The checkpoint of a stage: the state of each part, the finished steps and their seconds."""

    def __init__(self, path: Path, **parts: Any) -> None:
        self.path = path
        self.parts = parts
        self.done, spent = 0, 0.0
        if path.exists():
            state = torch.load(path)
            for name, part in parts.items():
                part.load_state_dict(state[name])
            self.done, spent = state["done"], state["seconds"]
        self.began = time.time() - spent

    def seconds(self) -> int:
        return round(time.time() - self.began)

    def save(self, done: int) -> None:
        states = {name: part.state_dict() for name, part in self.parts.items()}
        save_atomic(states | {"done": done, "seconds": self.seconds()}, self.path)


def write_json(value: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


class Log:
    """Log lines to stdout and to the file of the stage, with the seconds since the stage began."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.began = time.time()

    def __call__(self, *parts: Any) -> None:
        line = f"[{time.time() - self.began:7.1f}s] " + " ".join(str(part) for part in parts)
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as out:
            out.write(line + "\n")


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
