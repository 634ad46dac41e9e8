"""Requests to one server: pooled connections, time-outs, retries with backoff, answers whole or as they stream."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncGenerator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, finalize

import httpx

from cards.errors import SettingError, UnavailableError, check

T = TypeVar("T")
Pools = WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient]
LONGEST_PAUSE = 60.0  # seconds that a server may ask us to wait before the next attempt
TOO_LONG = ("context length", "context size", "context_length", "context window", "too long", "must have less than")


class RefusedError(SettingError):
    """The server refuses a request (4xx), for the reason that it gives."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def too_long(self) -> bool:
        """Whether the reason is a text beyond the context of the model."""
        return any(words in str(self).lower() for words in TOO_LONG)


class _PassingError(Exception):
    """An answer that may be a better one next time (5xx, 429); `after` is when the server wants to be asked again."""

    def __init__(self, message: str, after: float | None) -> None:
        super().__init__(message)
        self.after = after


class Client:
    """Asks one server. Every event loop has a pool of connections of its own; `timeout` is for silence, in seconds.

    What fails on the way, or is answered with 5xx or 429, is asked again up to `retries` times, after pauses that begin at
    `backoff` seconds and double, with jitter; of a stream only if nothing has come of it. Raises UnavailableError in the end,
    RefusedError on 4xx. Leaving a request, by cancellation or by closing its events, closes its connection, which
    a server sees. The key is sent as a bearer's and appears in no message.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 4,
        backoff: float = 0.5,
        connections: int | None = None,
    ) -> None:
        check(timeout > 0, f"timeout must be a positive number of seconds, not {timeout}.")
        check(retries >= 0, f"retries must not be negative, got {retries}.")
        try:
            host = httpx.URL(address).host
        except httpx.InvalidURL as error:
            raise SettingError(f"{address!r} is not an address: {error}.") from error
        check(bool(host), f"The address {address!r} names no host: http://host:port/path is one that does.")
        self.address = address.rstrip("/")
        self.timeout, self.retries, self.backoff, self.connections = timeout, retries, backoff, connections
        key = api_key or os.environ.get("CARDS_API_KEY")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._pools: Pools = WeakKeyDictionary()
        finalize(self, _close, self._pools).atexit = False

    async def get(self, path: str) -> Any:
        """The JSON that is found there."""
        return await self._whole("GET", path, None)

    async def post(self, path: str, body: Any) -> Any:
        """The JSON that is answered."""
        return await self._whole("POST", path, body)

    async def events(self, path: str, body: Any) -> AsyncGenerator[Any, None]:
        """The JSON of each event of a streamed answer, up to its [DONE]; use contextlib.aclosing."""
        taken = done = False
        for attempt in count():
            try:
                async with self._pool().stream("POST", self.address + path, json=body) as response:
                    await self._check(response)
                    async for line in _lines(response):
                        if not line.startswith("data:"):
                            continue
                        if (data := line.removeprefix("data:").strip()) == "[DONE]":
                            done = True
                            continue  # to the end, for only then the connection can be used again
                        event = self._json(data)
                        if isinstance(event, dict) and "error" in event:
                            raise UnavailableError(f"{self._place(path)} broke off: {_reason(data)}")
                        taken = True
                        yield event
                if done:
                    return
                raise httpx.RemoteProtocolError("the stream ended before its end")
            except (httpx.TransportError, _PassingError) as error:
                if taken:
                    raise UnavailableError(f"{self._place(path)} broke off in mid-answer: {_said(error)}.") from error
                await self._pause(path, attempt, error)

    async def aclose(self) -> None:
        """Close the connections of this event loop, and of others that still run."""
        if pool := self._pools.pop(asyncio.get_running_loop(), None):
            await pool.aclose()
        _close(self._pools)

    def at_once(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of what asks this server, for callers that cannot wait: in a thread, with a loop of its own."""

        async def alone() -> T:
            try:
                return await coroutine
            finally:
                if pool := self._pools.pop(asyncio.get_running_loop(), None):
                    await pool.aclose()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, alone()).result()

    def _pool(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if loop not in self._pools:
            self._pools[loop] = httpx.AsyncClient(
                headers=self._headers,
                timeout=httpx.Timeout(self.timeout, connect=min(5.0, self.timeout), pool=None),
                limits=httpx.Limits(max_connections=self.connections, max_keepalive_connections=self.connections),
            )
        return self._pools[loop]

    async def _whole(self, method: str, path: str, body: Any) -> Any:
        for attempt in count():
            try:
                response = await self._pool().request(method, self.address + path, json=body)
                await self._check(response)
                return self._json(response.text)
            except (httpx.TransportError, _PassingError) as error:
                await self._pause(path, attempt, error)
        raise AssertionError("unreachable")

    async def _check(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        await response.aread()
        status, reason = response.status_code, _reason(response.text)
        if status >= 500 or status in (408, 429):
            raise _PassingError(f"it answered {status}: {reason}", _seconds(response.headers.get("Retry-After")))
        place = f"The server at {response.url}"
        if status in (401, 403):
            raise RefusedError(
                f"{place} does not let us in ({status}: {reason}): give its key (api_key=..., or CARDS_API_KEY).", status
            )
        raise RefusedError(f"{place} refuses the request ({status}): {reason}", status)

    def _json(self, text: str) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            raise UnavailableError(
                f"The server at {self.address} answered something that is not JSON: {text[:80]!r}. Is the address right?"
            ) from None

    async def _pause(self, path: str, attempt: int, error: Exception) -> None:
        """Wait before the next attempt; raise UnavailableError if there is none."""
        if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
            raise UnavailableError(
                f"{self._place(path)} was silent for {self.timeout:g} s: it is overloaded, or timeout is too short."
            ) from error
        if attempt >= self.retries:
            raise UnavailableError(
                f"{self._place(path)} is not available: {_said(error)} (tried {attempt + 1} times). "
                "Does it run, and is the address right?"
            ) from error
        after = error.after if isinstance(error, _PassingError) else None
        pause = self.backoff * 2**attempt * random.uniform(0.5, 1.0)
        await asyncio.sleep(min(pause if after is None else after, LONGEST_PAUSE))

    def _place(self, path: str) -> str:
        return f"The server at {self.address}{path}"


async def _lines(response: httpx.Response) -> AsyncGenerator[str, None]:
    """Split at new lines alone: httpx also splits at other characters, which stand in JSON as they are."""
    rest = b""
    async for part in response.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line.decode()


def _close(pools: Pools) -> None:
    """Close them in their loops, as far as these run."""
    for loop, pool in list(pools.items()):
        if loop.is_running():
            asyncio.run_coroutine_threadsafe(pool.aclose(), loop)
    pools.clear()


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _seconds(retry_after: str | None) -> float | None:
    """Of a Retry-After header, where it is a number."""
    try:
        return None if retry_after is None else max(0.0, float(retry_after))
    except ValueError:
        return None


def _reason(text: str) -> str:
    """What a server says of an error, in the shapes of OpenAI, vLLM, text-embeddings-inference and FastAPI."""
    try:
        found: Any = json.loads(text)
    except json.JSONDecodeError:
        return text.strip()[:200]
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    return (found if isinstance(found, str) else json.dumps(found))[:500]
