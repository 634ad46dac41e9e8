"""The routes of the page: what the server offers, and runs, which are requests to the API from this page only."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from starlette.datastructures import Headers

from cards.serve.catalog import Catalog
from cards.serve.errors import ApiError
from cards.serve.formatters import ChatFormatter, CompletionFormatter
from cards.serve.guard import RUNS
from cards.serve.playground.offer import offer
from cards.serve.routes import respond
from cards.serve.schemas import ChatBody, CompletionBody


def playground(catalog: Catalog) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/playground/offer")
    async def offered() -> dict[str, Any]:
        return offer(catalog)

    @router.post(f"{RUNS}chat/completions", dependencies=[Depends(check_origin)])
    async def chat(body: ChatBody, request: Request) -> Response:
        return await respond(catalog, body, request, ChatFormatter, "chatcmpl-")

    @router.post(f"{RUNS}completions", dependencies=[Depends(check_origin)])
    async def completion(body: CompletionBody, request: Request) -> Response:
        return await respond(catalog, body, request, CompletionFormatter, "cmpl-")

    return router


def check_origin(request: Request) -> None:
    """Raise ApiError (403) for pages of other origins. Browsers send the cookie of a session also for them."""
    if not same_origin(request.headers):
        raise ApiError(403, "Pages of other origins cannot use the playground.", code="foreign_origin")


def same_origin(headers: Headers) -> bool:
    """Return whether a request comes from a page of this server, or from no page.

    Browsers send Sec-Fetch-Site to HTTPS and local servers, and it also holds behind a proxy that changes the host.
    """
    origin = headers.get("origin")
    if origin is None:
        return True
    site = headers.get("sec-fetch-site")
    return site == "same-origin" if site else urlsplit(origin).netloc == headers.get("host")
