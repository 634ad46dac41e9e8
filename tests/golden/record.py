"""Record the golden results: `python tests/golden/record.py [--out DIR]`, with the code to record first on PYTHONPATH."""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import recording
import torch
from cases import COMMANDS, METHODS, REQUESTS

HERE = Path(__file__).parent / "data"


def read(group: str, folder: Path = HERE) -> Any:
    return json.loads(gzip.decompress((folder / f"{group}.json.gz").read_bytes()))


def write(group: str, found: Any, folder: Path) -> None:
    """The file is the same, byte for byte, for the same data."""
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    (folder / f"{group}.json.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def record() -> dict[str, Any]:
    found: dict[str, Any] = {"methods": {name: recording.method(name) for name in METHODS}}
    found["commands"] = {name: recording.command(name) for name in COMMANDS}
    with recording.serving() as url:
        found["server"] = {name: recording.request(url, name) for name in REQUESTS}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help="Folder for the files.")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for group, found in record().items():
        write(group, found, folder)


if __name__ == "__main__":
    main()
