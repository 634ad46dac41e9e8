"""Wait for a condition in a test."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any


async def eventually(condition: Callable[[], bool], wait: Callable[[], Awaitable[None] | Coroutine[Any, Any, None]]) -> None:
    """Let other tasks run until the condition holds. Raises AssertionError after 1000 turns."""
    for _ in range(1000):
        if condition():
            return
        await wait()
    raise AssertionError("The condition never came true.")
