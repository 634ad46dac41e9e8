"""A batch on several Ray nodes is the batch of one process, also when workers and nodes die under it."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

import cards.cli
from cards.integrations import ray_data

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402  (after the environment is set)

ROWS = 400
SMALL = ("--method", "vanilla", "--max-tokens", "8", "--slots", "4")
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:`[a-z0-9_]+` is deprecated:DeprecationWarning"),  # Ray copies its own settings
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes with a CPU each; the head is one of them."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1, include_dashboard=False)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


def workers(cluster: Any) -> dict[Any, psutil.Process]:
    """The decoders' processes by their nodes."""
    found = {}
    for node in cluster.list_all_nodes():
        for raylet in node.all_processes.get("raylet", ()):
            with suppress(psutil.Error):  # one that ends meanwhile
                for child in psutil.Process(raylet.process.pid).children():
                    if "MapWorker" in child.name():
                        found[node] = child
    return found


def wait(condition: Callable[[], Any]) -> Any:
    for _ in range(6000):
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it never came true")


def rows(path: Path) -> list[dict[str, Any]]:
    """Without their costs, which depend on what else runs."""
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in row.items() if name != "usage"} for row in found]


def test_nothing_is_lost_or_doubled_when_a_worker_and_a_node_die(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray_data, "BLOCK_ROWS", 4)
    Path("in.jsonl").write_text(
        "".join(json.dumps({"prompt": "" if i % 50 == 7 else f"What is number {i}?"}) + "\n" for i in range(ROWS))
    )
    died: list[Any] = []

    def strike() -> None:
        out = Path("out.jsonl")
        wait(lambda: out.exists() and out.read_bytes().count(b"\n") > 5)
        found = wait(lambda: len(both := workers(cluster)) == 2 and both)
        victim = found.get(cluster.head_node) or next(iter(found.values()))  # the other is then on a node that can go
        victim.kill()
        died.append(victim.pid)
        wait(lambda: out.read_bytes().count(b"\n") > 20)
        node = wait(lambda: [node for node in workers(cluster) if node is not cluster.head_node])[0]
        died.append(out.read_bytes().count(b"\n"))
        cluster.remove_node(node, allow_graceful=False)

    striker = threading.Thread(target=strike, daemon=True)
    striker.start()
    ran = CliRunner().invoke(cards.cli.app, ["batch", "in.jsonl", "out.jsonl", "--ray", "--ray-workers", "2", *SMALL])
    striker.join(60)
    assert isinstance(ran.exception, SystemExit), ran.exc_info
    assert ran.exit_code == 1, ran.output  # some rows have no prompt
    assert len(died) == 2
    assert died[1] < ROWS - 20  # there was work left when the node went
    assert CliRunner().invoke(cards.cli.app, ["batch", "in.jsonl", "here.jsonl", *SMALL]).exit_code == 1
    assert rows(Path("out.jsonl")) == rows(Path("here.jsonl"))
    assert rows(Path("out.errors.jsonl")) == rows(Path("here.errors.jsonl"))
    assert sorted(row["row"] for name in ("out.jsonl", "out.errors.jsonl") for row in rows(Path(name))) == list(range(ROWS))


def test_what_is_nobodys_row_ends_the_batch_with_its_reason(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text('{"prompt": "a"}\n')
    ran = CliRunner().invoke(cards.cli.app, ["batch", "in.jsonl", "out.jsonl", "--ray", "--reward", "length:5"])
    assert ran.exit_code == 2
    assert "A length reward is named" in ran.stderr  # what the loader said, on its node
