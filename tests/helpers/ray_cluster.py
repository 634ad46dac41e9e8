"""A Ray cluster on this machine that serves an application, and requests to it."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import httpx
import pytest

from cards.serve.server import bind

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
ray = pytest.importorskip("ray")
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Using extra keyword arguments on `Field`", DeprecationWarning)  # Ray's own models
    from ray import serve as serve
    from ray.serve.schema import ServeDeploySchema as ServeDeploySchema

    ray_serve = import_module("cards.integrations.ray_serve")  # untyped, as Ray has no types for deployments


@contextmanager
def cluster(application: serve.Application) -> Iterator[str]:
    """Yield the address of the application."""
    with bind("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application)
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def ask(address: str, turns: list[str], **more: Any) -> httpx.Response:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    body = {"model": "tiny", "messages": messages, "seed": 3, "max_tokens": 12, **more}
    return httpx.post(f"{address}/v1/chat/completions", json=body, timeout=300)


def wait(condition: Callable[[], Any]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it never came true")
