"""Checks before a request is processed: API key, body size and the time that the body takes to arrive."""

from __future__ import annotations

import asyncio
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cards.serve.errors import ApiError
from cards.serve.options import ServerOptions

LARGE_BODY = 2**16  # bytes
PUBLIC_PATHS = frozenset({"/health", "/ready", "/metrics"})


def path_of(scope: Scope) -> str:
    """Return the path of a request without the prefix under which the app is mounted."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


class Guard:
    """ASGI middleware that checks the API key and limits the size and the arrival time of the body."""

    def __init__(self, app: ASGIApp, options: ServerOptions) -> None:
        self.app, self.options = app, options
        self.turn = asyncio.Lock()  # large bodies are parsed one at a time, so that the event loop can serve others in between
        self.keys = [key.encode() for key in options.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._check_headers(scope)
        except ApiError as error:
            await error.response(scope, receive, send)
            return
        await self.app(scope, self._limited(receive), send)

    def _check_headers(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self.keys and path_of(scope) not in PUBLIC_PATHS:
            kind, _, value = headers.get("authorization", "").partition(" ")
            given = value.strip().encode("latin-1")
            matches = [hmac.compare_digest(given, key) for key in self.keys]  # all keys, so that timing reveals nothing
            if kind.lower() != "bearer" or not any(matches):
                why = "Missing or invalid API key. Send the header `Authorization: Bearer KEY`."
                raise ApiError(401, why, code="invalid_api_key")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.options.max_body:
            raise self._too_large(int(length))

    def _limited(self, receive: Receive) -> Receive:
        size, complete = 0, False
        deadline = asyncio.get_running_loop().time() + self.options.read_timeout

        async def limited() -> Message:
            nonlocal size, complete
            try:
                async with asyncio.timeout_at(None if complete else deadline):
                    message = await receive()
            except TimeoutError:
                why = f"The body did not arrive within {self.options.read_timeout:g} s. Retry with a faster connection."
                raise ApiError(408, why, code="timeout") from None
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if size > self.options.max_body:
                    raise self._too_large(size)
                if complete and size > LARGE_BODY:
                    async with self.turn:
                        await asyncio.sleep(0)
            return message

        return limited

    def _too_large(self, size: int) -> ApiError:
        why = f"The body must have at most {self.options.max_body} bytes, got {size} or more. Shorten the request."
        return ApiError(413, why, code="body_too_large")
