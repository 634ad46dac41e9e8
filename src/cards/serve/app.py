"""The FastAPI app: OpenAI's API, health, metrics and the optional playground for one engine and one reward."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

import cards
from cards.engines.base import Engine
from cards.errors import CardsError
from cards.methods.base import Method
from cards.rewards.base import Reward
from cards.serve.errors import api_error
from cards.serve.guard import Guard
from cards.serve.options import ServerOptions
from cards.serve.record import Recorder
from cards.serve.routes import routes
from cards.serve.service import Service
from cards.serve.streaming import DisconnectedError
from cards.serve.tracing import Tracing


def make_app(
    engine: Engine, reward: Reward | None, method: Method, options: ServerOptions | None = None, tracing: Tracing | None = None
) -> FastAPI:
    """Return the app for these models, which the caller closes. `app.state.service` is its Service.

    Raises MismatchError if the method cannot run on the models, and MissingExtraError if the playground needs Gradio.
    """
    service = Service(engine, reward, method, options or ServerOptions(), tracing or Tracing())
    app = FastAPI(title="CARDS", version=cards.__version__, summary="Decoding-time alignment behind OpenAI's API.")
    app.state.service = service
    app.include_router(routes(service))
    _add_health(app, service)
    for kind in (RequestValidationError, HTTPException, CardsError):
        app.add_exception_handler(kind, _error_response)
    app.add_exception_handler(DisconnectedError, _record_disconnect)
    app.add_middleware(Guard, options=service.options)
    if service.options.cors:
        app.add_middleware(CORSMiddleware, allow_origins=service.options.cors, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Recorder, observe=service.metrics.observe, log_prompts=service.options.log_prompts)
    if service.options.playground:
        from cards.serve.playground import mount

        mount(app, service.decoder, service.admission)
    return app


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/health", summary="Report that the process is alive")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", summary="Report whether requests are accepted", responses={503: {"description": "They are not."}})
    async def ready() -> JSONResponse:
        if service.draining:
            return JSONResponse({"status": "ending"}, 503)
        if service.gate.full:
            return JSONResponse({"status": "queue full"}, 503)
        if failure := await service.readiness.check():
            return JSONResponse({"status": failure}, 503)
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", summary="Metrics for Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def _error_response(request: Request, error: Exception) -> Response:
    request.state.record.error = converted = api_error(error)
    return converted.response


async def _record_disconnect(request: Request, error: Exception) -> Response:
    request.state.record.disconnected = True
    return Response(status_code=499)  # the client is gone, so only the log shows it
