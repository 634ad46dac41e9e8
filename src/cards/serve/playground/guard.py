"""Access to Gradio: only the routes that the page uses, no files, and no pages of other sites."""

from __future__ import annotations

import json
import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cards.serve.errors import ApiError
from cards.serve.guard import path_of

READ = re.compile(r"/|/(assets|static)/.*|/theme\.css|/favicon\.ico|/gradio_api/(queue/data|heartbeat/\w+)")
WRITE = re.compile(r"/gradio_api/(queue/join|run/predict|cancel)")


class PlaygroundGuard:
    """ASGI middleware around Gradio. All routes that it does not list are closed, such as uploads and files.

    At most `max_open` requests are open, because open pages keep connections that the API needs, too.
    """

    def __init__(self, app: ASGIApp, max_open: int) -> None:
        self.app, self.max_open, self.open = app, max_open, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.open >= self.max_open:
            raise ApiError(503, "Too many pages of the playground are open. Retry later.", code="busy", retry_after=5)
        self.open += 1
        try:
            await self.app(scope, await self._checked(scope, receive), send)
        finally:
            self.open -= 1

    async def _checked(self, scope: Scope, receive: Receive) -> Receive:
        """Raise ApiError, or return a channel with the body that was read for the check."""
        path, reads = path_of(scope), scope["method"] == "GET"
        if not (READ if reads else WRITE).fullmatch(path) or scope["method"] not in ("GET", "POST"):
            raise ApiError(404, f"There is no {scope['method']} {path}.", code="not_found")
        if not same_origin(Headers(scope=scope)):
            raise ApiError(403, "Pages of other origins cannot use the playground.", code="foreign_origin")
        if reads:
            return receive
        body = await Request(scope, receive).body()
        if not _has_plain_values(body):
            raise ApiError(400, "The playground accepts texts and numbers only.", code="invalid_body")
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Message:
            return unread.pop() if unread else await receive()

        return replayed


def same_origin(headers: Headers) -> bool:
    """Return whether a request comes from a page of this server, or from no page.

    Browsers send Sec-Fetch-Site to HTTPS and local servers, and it also holds behind a proxy that changes the host.
    """
    origin = headers.get("origin")
    if origin is None:
        return True
    site = headers.get("sec-fetch-site")
    return site == "same-origin" if site else urlsplit(origin).netloc == headers.get("host")


def _has_plain_values(body: bytes) -> bool:
    """Return whether the inputs contain no objects: Gradio fetches or reads the file that an object may name."""
    try:
        data = json.loads(body).get("data") or []
    except (ValueError, AttributeError, RecursionError):
        return False
    return isinstance(data, list) and not any(isinstance(value, dict | list) for value in data)
