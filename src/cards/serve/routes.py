"""The endpoints of OpenAI's API."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute

from cards.serve.api_key import ANYONE
from cards.serve.catalog import Catalog
from cards.serve.errors import ApiError
from cards.serve.formatters import FORMAT, ChatFormatter, CompletionFormatter, ResponseFormatter
from cards.serve.generation import ChoiceEvent, Generation
from cards.serve.record import Record
from cards.serve.responses import ChatCompletion, Completion, ErrorBody, ModelBody, ModelList, documented
from cards.serve.responses_format import ResponsesAnswer, ResponsesFormatter
from cards.serve.responses_request import ResponsesBody
from cards.serve.schemas import Body, ChatBody, CompletionBody
from cards.serve.streaming import PING_SECONDS, EventStream, unless_disconnected

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
DESCRIPTIONS: dict[int | str, str] = {
    400: "A field or value is unknown, out of range or not supported.",
    401: "The API key is missing or invalid.",
    404: "The model is unknown.",
    408: "The body took too long to arrive.",
    413: "The body is too large.",
    429: "A limit of the API key or of the server is reached. Retry after the seconds in Retry-After.",
    503: "The reward or the model failed, or the server is shutting down.",
    "default": "Another error.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text} for status, text in DESCRIPTIONS.items()
}


def routes(catalog: Catalog) -> APIRouter:
    router = APIRouter(prefix="/v1", responses=ERRORS)

    @router.post("/completions", summary="Create a completion of a text", responses=documented(Completion, stream=True))
    async def completions(body: CompletionBody, request: Request) -> Response:
        return await respond(catalog, body, request, CompletionFormatter, "cmpl-")

    chat = documented(ChatCompletion, stream=True)

    @router.post("/chat/completions", summary="Create a response in a conversation", responses=chat)
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        return await respond(catalog, body, request, ChatFormatter, "chatcmpl-")

    answer = documented(ResponsesAnswer, stream=True)

    @router.post("/responses", summary="Create a response with OpenAI's Responses API", responses=answer)
    async def create_response(body: ResponsesBody, request: Request) -> Response:
        return await respond(catalog, body, request, partial(ResponsesFormatter, body=body), "resp_")

    @router.get("/models", summary="List the models of this server", responses=documented(ModelList))
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(name) for name in catalog.names]}

    @router.get("/models/{name:path}", summary="Describe one model", responses=documented(ModelBody))
    async def model(name: str) -> dict[str, Any]:
        return _model(name)

    @router.api_route("/{path:path}", methods=METHODS, include_in_schema=False)
    async def unknown(path: str, request: Request) -> Response:
        known = [route for route in router.routes if isinstance(route, APIRoute) and route.path_regex.match(f"/v1/{path}")]
        allowed = sorted({method for route in known[:-1] for method in route.methods or ()})
        why = f"Unknown request URL: {request.method} /v1/{path}."
        if not allowed:
            raise ApiError(404, f"{why} Check the URL for typos.", code="unknown_url")
        error = ApiError(405, f"{why} Use {' or '.join(allowed)}.", code="unknown_url")
        error.headers = {"Allow": ", ".join(allowed)}
        raise error

    started = int(time.time())

    def _model(name: str) -> dict[str, Any]:
        service = catalog.find(name)
        methods = service.methods
        extra: dict[str, Any] = {"format": FORMAT, "method": methods.default, "methods": methods.listed}
        extra |= {"reward": service.reward_name, "context": service.engine.context}
        extra |= {"max_tokens": service.options.limit_tokens}
        if service.entry.weights is not None:
            extra["weights"] = service.entry.weights.to_dict()
        about = {"id": name, "object": "model", "created": started, "owned_by": "cards", "root": service.name}
        return about | {"max_model_len": service.engine.context, "cards": extra}

    return router


async def respond(
    catalog: Catalog, body: Body, request: Request, kind: Callable[..., ResponseFormatter], prefix: str
) -> Response:
    """Generate the responses to a request. Raises ApiError, CardsError, or DisconnectedError if the client disconnects."""
    record: Record = request.state.record
    service = catalog.find(body.model)
    record.model = service.name
    validated = service.validate(body, record.arrived)
    generation = service.generation(validated)
    formatter = kind(f"{prefix}{record.id}", service.name, validated, service.reward_name, service.fingerprint)
    async with AsyncExitStack() as resources:
        reserved = validated.max_tokens * len(validated.choices)
        counted = catalog.meters.request(key_of(request), reserved, lambda: sum(generation.tokens))
        resources.enter_context(counted)
        record.generation = generation
        resources.push_async_callback(generation.aclose)
        with service.tracing.parent(dict(request.headers)):
            await unless_disconnected(request.receive, generation.start(PING_SECONDS if validated.stream else None))
        if validated.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            return EventStream(generation, formatter, record, resources.pop_all(), with_usage)
        events = await unless_disconnected(request.receive, _all_events(generation))
        unaligned = any(choice.unaligned is not None for choice in validated.choices)
        return JSONResponse(formatter.complete(events), headers={"X-Cards-Aligned": "false"} if unaligned else None)


def key_of(request: Request) -> str:
    """Return the name of the API key of a request."""
    return str(getattr(request.state, "key", ANYONE))


async def _all_events(generation: Generation) -> list[ChoiceEvent]:
    return [event async for event in generation.events() if event is not None]
