"""Checks before a request is processed: host name, API key, body size and the time that the body takes to arrive."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cards.serve import login
from cards.serve.errors import ApiError
from cards.serve.keys import COOKIE, Keys, address_of
from cards.serve.options import ServerOptions

LARGE_BODY = 2**16  # bytes
API_PATHS = ("/v1/", "/tokenize", "/detokenize")  # and /tokenizer_info
RUNS = "/playground/v1/"  # requests to the API from the playground
PUBLIC_PATHS = frozenset({"/health", "/ready", "/metrics"})


def path_of(scope: Scope) -> str:
    """Return the path of a request without the prefix under which the app is mounted."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def host_name(host: str) -> str:
    """Return a host without its port, in lower case. An IPv6 address can be in brackets."""
    if host.count(":") > 1 and not host.startswith("["):
        return host.lower()
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


class Guard:
    """ASGI middleware that checks host name and API key, and limits the size and the arrival time of the body."""

    def __init__(self, app: ASGIApp, options: ServerOptions, keys: Keys) -> None:
        self.app, self.options, self.keys = app, options, keys
        self.turn = asyncio.Lock()  # large bodies are parsed one at a time, so that the event loop can serve others in between

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._check_host(scope)
            self._check_key(scope)
            self._check_length(scope)
        except ApiError as error:
            page = self.options.playground and error.status_code == 401 and path_of(scope) == "/"
            response = RedirectResponse(login.PATH[1:], 303) if page else error.response
            await response(scope, receive, send)
            return
        await self.app(scope, self._limited(receive), send)

    def _check_host(self, scope: Scope) -> None:
        """Refuse other host names. A page of another site can point its own name at this machine (DNS rebinding)."""
        allowed, given = self.options.allowed_hosts, Headers(scope=scope).get("host", "")
        if allowed and given and "*" not in allowed and host_name(given) not in map(host_name, allowed):
            why = f"This server does not accept requests to the host {given!r}. Allow it with --allowed-hosts."
            raise ApiError(403, why, code="host_not_allowed")

    def _check_key(self, scope: Scope) -> None:
        path, connection = path_of(scope), HTTPConnection(scope)
        if not self.options.api_keys or path in PUBLIC_PATHS:
            return
        name = self.keys.name_of_header(connection.headers.get("authorization", ""), address_of(connection))
        if name is not None:
            scope.setdefault("state", {})["key"] = name
            return
        if self.options.playground and path == login.PATH:
            return
        if self.options.playground and not path.startswith(API_PATHS):  # browsers send cookies also for pages of other sites
            session = connection.cookies.get(COOKIE, "")
            name = self.keys.name_of_session(session, address_of(connection))
            if name is not None:
                scope.setdefault("state", {})["key"] = name
                return
        why = "Missing or invalid API key. Send the header `Authorization: Bearer KEY`."
        raise ApiError(401, why, code="invalid_api_key")

    def _check_length(self, scope: Scope) -> None:
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and int(length) > self.options.limit_body:
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
                if size > self.options.limit_body:
                    raise self._too_large(size)
                if complete and size > LARGE_BODY:
                    async with self.turn:
                        await asyncio.sleep(0)
            return message

        return limited

    def _too_large(self, size: int) -> ApiError:
        why = f"The body must have at most {self.options.limit_body} bytes, got {size} or more. Shorten the request."
        return ApiError(413, why, code="body_too_large")
