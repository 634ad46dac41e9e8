"""What the programs of all clients share; the standard library suffices. Each check prints a line of JSON.

A program gets the address of a server and checks that its client gives what the server gives to a plain HTTP request.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

URL = sys.argv[1] if len(sys.argv) > 1 else ""
QUESTION = "What did you think of the film?"
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
FIXED: dict[str, Any] = {"model": "tiny", "max_tokens": 12, "seed": 5}
BEST = {"method": "best-of-n", "settings": {"n": 3}}
MOOD = {
    "type": "object",
    "properties": {"mood": {"type": "string", "enum": ["good", "bad"]}},
    "required": ["mood"],
    "additionalProperties": False,
}


@contextmanager
def check(feature: str) -> Iterator[None]:
    """Run a check and print its outcome. Errors do not end the program."""
    error = None
    try:
        yield
    except Exception as caught:
        traceback.print_exc()
        error = f"{type(caught).__name__}: {caught}"[:300]
    print(json.dumps({"feature": feature, "error": error}), flush=True)


def direct(path: str, body: dict[str, Any]) -> Any:
    """Return the reply to a plain HTTP request."""
    data = json.dumps(FIXED | body).encode()
    with urlopen(Request(URL + path, data, {"Content-Type": "application/json"}), timeout=120) as reply:
        return json.load(reply)


def chat(**more: Any) -> str:
    """Return the response to the question."""
    return str(direct("/v1/chat/completions", {"messages": MESSAGES, **more})["choices"][0]["message"]["content"])


def same(found: Any, expected: Any) -> None:
    if found != expected:
        raise AssertionError(f"got {found!r}, expected {expected!r}")
