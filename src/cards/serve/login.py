"""The page that asks for an API key before it shows the playground."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from cards.serve.keys import COOKIE, Keys, address_of

PATH = "/login"
PAGE = Path(__file__).with_name("login.html")
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'",
}


def login(keys: Keys) -> APIRouter:
    router = APIRouter(include_in_schema=False)
    page = PAGE.read_text(encoding="utf-8")

    @router.get(PATH)
    async def ask() -> Response:
        return HTMLResponse(page, headers=HEADERS)

    @router.post(PATH)
    async def check(request: Request) -> Response:
        [key] = parse_qs((await request.body()).decode(errors="replace")).get("key", [""])[:1]
        if keys.name_of(key := key.strip(), address_of(request)) is None:
            return HTMLResponse(page.replace("hidden", "", 1), 401, headers=HEADERS)
        response = RedirectResponse(".", 303)
        secure = request.url.scheme == "https"
        path = request.scope.get("root_path") or "/"
        response.set_cookie(COOKIE, keys.session(key), path=path, httponly=True, samesite="lax", secure=secure)
        return response

    return router
