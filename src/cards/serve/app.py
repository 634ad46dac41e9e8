"""The FastAPI app: OpenAI's API, health, metrics and the playground for models, rewards and methods."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

import cards
from cards.engines.base import Engine
from cards.errors import CardsError
from cards.methods.base import Method
from cards.rewards.base import Reward
from cards.serve.catalog import Catalog
from cards.serve.errors import api_error, public
from cards.serve.guard import Guard
from cards.serve.keys import Keys
from cards.serve.login import login
from cards.serve.options import ServerOptions
from cards.serve.playground import mount
from cards.serve.record import Recorder
from cards.serve.responses import Status, documented
from cards.serve.routes import routes
from cards.serve.service import Entry
from cards.serve.streaming import DisconnectedError
from cards.serve.tokenization import tokenization
from cards.serve.tracing import Tracing

EXPOSED_HEADERS = ["Retry-After", "WWW-Authenticate", "X-Cards-Aligned", "X-Request-ID"]  # pages of other origins can read


def make_app(
    engine: Engine, reward: Reward | None, method: Method, options: ServerOptions | None = None, tracing: Tracing | None = None
) -> FastAPI:
    """Return the app for these models, which the caller closes. `app.state.service` is its Service.

    Raises MismatchError if the method cannot run on the models.
    """
    options = options or ServerOptions()
    return make_catalog_app([Entry(options.name or public(engine.name), engine, reward, method)], options, tracing)


def make_catalog_app(entries: Sequence[Entry], options: ServerOptions, tracing: Tracing | None = None) -> FastAPI:
    """Return the app for several entries, whose models the caller closes. `app.state.catalog` is its Catalog.

    Raises SettingError if names are not unique, and as `make_app`.
    """
    catalog = Catalog(entries, options, tracing or Tracing())
    service = catalog.default
    summary = "Decoding-time alignment behind OpenAI's API."
    app = FastAPI(title="CARDS", version=cards.__version__, summary=summary, docs_url=None, redoc_url=None)  # these use a CDN
    app.state.catalog, app.state.service = catalog, service
    app.include_router(routes(catalog))
    app.include_router(tokenization(catalog))
    _add_health(app, catalog)
    for kind in (RequestValidationError, HTTPException, CardsError):
        app.add_exception_handler(kind, _error_response)
    app.add_exception_handler(DisconnectedError, _record_disconnect)
    app.add_middleware(HeadAsGet)
    keys = Keys(options.api_keys)
    app.add_middleware(Guard, options=options, keys=keys)
    app.add_middleware(Recorder, observe=catalog.metrics.observe, log_prompts=options.log_prompts)
    if origins := options.cors:  # outermost, so that pages can read errors
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=EXPOSED_HEADERS
        )
    if options.playground:
        if options.api_keys:
            app.include_router(login(keys))
        mount(app, catalog)
    return app


class HeadAsGet:
    """ASGI middleware that answers HEAD like GET. HTTP servers send no body for HEAD."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app({**scope, "method": "GET"} if scope.get("method") == "HEAD" else scope, receive, send)


def _add_health(app: FastAPI, catalog: Catalog) -> None:
    @app.get("/health", summary="Report that the process is alive", responses=documented(Status))
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    states = documented(Status)
    states[503] = {"model": Status, "description": "Requests are not accepted."}

    @app.get("/ready", summary="Report whether requests are accepted", responses=states)
    async def ready() -> JSONResponse:
        if catalog.draining:
            return JSONResponse({"status": "ending"}, 503)
        if catalog.full:
            return JSONResponse({"status": "queue full"}, 503)
        if failure := await catalog.failure():
            return JSONResponse({"status": failure}, 503)
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(catalog.metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def _error_response(request: Request, error: Exception) -> Response:
    request.state.record.error = converted = api_error(error)
    return converted.response


async def _record_disconnect(request: Request, error: Exception) -> Response:
    request.state.record.disconnected = True
    return Response(status_code=499)  # the client is gone, so only the log shows it
