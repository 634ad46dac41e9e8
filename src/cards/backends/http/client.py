"""An HTTP client for one server, with connection pools, time-outs, retries and event streams."""

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

from cards.errors import SettingError, UnavailableError, check, public_name
from cards.parts import Composite

T = TypeVar("T")
Pools = WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient]
MAX_RETRY_DELAY = 60.0  # seconds; bounds the Retry-After header of a server
TOO_LONG_PHRASES = ("context length", "context size", "context_length", "context window", "too long", "must have less than")


class RejectedRequestError(SettingError):
    """The server rejected a request (status 4xx). The message has the server's reason."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def too_long(self) -> bool:
        """Whether the text exceeds the context of the model."""
        return any(phrase in str(self).lower() for phrase in TOO_LONG_PHRASES)


class _TransientError(Exception):
    """A failure that may pass (status 5xx, 408 or 429). `retry_after` is the delay in seconds that the server asks for."""

    def __init__(self, message: str, retry_after: float | None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Client(Composite):
    """An HTTP client for one server. Each event loop has a separate connection pool.

    timeout: seconds without data from the server before a request fails.
    retries: attempts after a connection error or a status of 5xx, 408 or 429. The delay starts at `backoff` seconds and
    doubles, with jitter. A stream is retried only before its first event.
    api_key: sent as a bearer token, and never part of a message.
    A user name, password or query in the address is sent with every request, and is not part of `address` or of a message.

    Cancelling a request, or closing its events, closes the connection, so that the server can stop the work.
    Raises UnavailableError after the last attempt, RejectedRequestError on any other status 4xx.
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
        check(timeout > 0, f"timeout must be a positive number of seconds, got {timeout}.")
        check(retries >= 0, f"retries must not be negative, got {retries}.")
        try:
            self.url = httpx.URL(address.rstrip("/"))
        except httpx.InvalidURL:
            raise SettingError(f"{public_name(address)!r} is not a valid address.") from None
        check(bool(self.url.host), f"The address must have the form http://host:port/path, got {public_name(address)!r}.")
        self.timeout, self.retries, self.backoff, self.connections = timeout, retries, backoff, connections
        key = api_key or os.environ.get("CARDS_API_KEY")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._pools: Pools = WeakKeyDictionary()
        finalize(self, _close, self._pools).atexit = False

    @property
    def address(self) -> str:
        """Return the address without user name, password and query."""
        return public_name(str(self.url)).rstrip("/")

    def url_of(self, path: str) -> httpx.URL:
        """Return the URL of a path below the address, with the user name, password and query of the address."""
        return self.url.copy_with(path=self.url.path.rstrip("/") + path)

    async def get(self, path: str) -> Any:
        """Return the JSON of a GET request."""
        return await self._request("GET", path, None)

    async def post(self, path: str, body: Any) -> Any:
        """Return the JSON of a POST request."""
        return await self._request("POST", path, body)

    async def events(self, path: str, body: Any) -> AsyncGenerator[Any, None]:
        """Yield the JSON of each server-sent event before [DONE]. Use contextlib.aclosing."""
        received = done = False
        for attempt in count():
            try:
                async with self._pool().stream("POST", self.url_of(path), json=body) as response:
                    await self._check(response)
                    async for line in _lines(response):
                        if not line.startswith("data:"):
                            continue
                        if (data := line.removeprefix("data:").strip()) == "[DONE]":
                            done = True
                            continue  # the connection can be reused only after the stream has been read to its end
                        event = self._json(data)
                        if isinstance(event, dict) and "error" in event:
                            raise UnavailableError(f"{self._server(path)} sent an error in a stream: {_reason(data)}")
                        received = True
                        yield event
                if done:
                    return
                raise httpx.RemoteProtocolError("the stream ended without [DONE]")
            except (httpx.TransportError, _TransientError) as error:
                if received:
                    raise UnavailableError(
                        f"{self._server(path)} interrupted a stream of events: {_description(error)}."
                    ) from error
                await self._delay(path, attempt, error)

    async def aclose(self) -> None:
        """Close the connections of this event loop, and of all others that are still running."""
        if pool := self._pools.pop(asyncio.get_running_loop(), None):
            await pool.aclose()
        _close(self._pools)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine that uses this client, for synchronous callers. It runs in a new event loop in another thread."""

        async def run_and_close() -> T:
            try:
                return await coroutine
            finally:
                if pool := self._pools.pop(asyncio.get_running_loop(), None):
                    await pool.aclose()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, run_and_close()).result()

    def _pool(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if loop not in self._pools:
            self._pools[loop] = httpx.AsyncClient(
                headers=self._headers,
                timeout=httpx.Timeout(self.timeout, connect=min(5.0, self.timeout), pool=None),
                limits=httpx.Limits(max_connections=self.connections, max_keepalive_connections=self.connections),
            )
        return self._pools[loop]

    async def _request(self, method: str, path: str, body: Any) -> Any:
        for attempt in count():
            try:
                response = await self._pool().request(method, self.url_of(path), json=body)
                await self._check(response)
                return self._json(response.text)
            except (httpx.TransportError, _TransientError) as error:
                await self._delay(path, attempt, error)
        raise AssertionError("unreachable")

    async def _check(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        await response.aread()
        status, reason = response.status_code, _reason(response.text)
        if status >= 500 or status in (408, 429):
            raise _TransientError(f"status {status}: {reason}", _seconds(response.headers.get("Retry-After")))
        server = f"The server at {public_name(str(response.url))}"
        if status in (401, 403):
            raise RejectedRequestError(
                f"{server} denied access ({status}: {reason}). Give the server's key (api_key=... or CARDS_API_KEY).", status
            )
        raise RejectedRequestError(f"{server} rejected the request ({status}): {reason}", status)

    def _json(self, text: str) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            raise UnavailableError(
                f"The server at {self.address} did not return JSON, got {text[:80]!r}. Is the address right?"
            ) from None

    async def _delay(self, path: str, attempt: int, error: Exception) -> None:
        """Wait before the next attempt. Raises UnavailableError if no attempt is left."""
        if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
            raise UnavailableError(
                f"{self._server(path)} sent nothing for {self.timeout:g} s. It may be overloaded, or timeout may be too short."
            ) from error
        if attempt >= self.retries:
            raise UnavailableError(
                f"{self._server(path)} is not available: {_description(error)} (tried {attempt + 1} times). "
                "Is it running, and is the address right?"
            ) from error
        retry_after = error.retry_after if isinstance(error, _TransientError) else None
        delay = self.backoff * 2**attempt * random.uniform(0.5, 1.0)
        await asyncio.sleep(min(delay if retry_after is None else retry_after, MAX_RETRY_DELAY))

    def _server(self, path: str) -> str:
        return f"The server at {self.address}{path}"


async def _lines(response: httpx.Response) -> AsyncGenerator[str, None]:
    """Yield the lines of a body, split at newlines only. httpx also splits at characters that JSON strings may contain."""
    rest = b""
    async for part in response.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line.decode()


def _close(pools: Pools) -> None:
    """Close each pool in its event loop, if the loop is running."""
    for loop, pool in list(pools.items()):
        if loop.is_running():
            asyncio.run_coroutine_threadsafe(pool.aclose(), loop)
    pools.clear()


def _description(error: Exception) -> str:
    return str(error) or type(error).__name__


def _seconds(retry_after: str | None) -> float | None:
    """Return the seconds of a Retry-After header, or None if it is missing or a date."""
    try:
        return None if retry_after is None else max(0.0, float(retry_after))
    except ValueError:
        return None


def _reason(text: str) -> str:
    """Return the message of an error response of OpenAI, vLLM, text-embeddings-inference or FastAPI."""
    try:
        found: Any = json.loads(text)
    except json.JSONDecodeError:
        return text.strip()[:200]
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    return (found if isinstance(found, str) else json.dumps(found))[:500]
