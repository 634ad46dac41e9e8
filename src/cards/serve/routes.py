"""The endpoints of OpenAI's API."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from cards.serve.answering import Answering, Item
from cards.serve.errors import ApiError
from cards.serve.record import Record
from cards.serve.schemas import Body, ChatBody, CompletionBody
from cards.serve.service import Service
from cards.serve.shapes import FORMAT, Chat, Completion, Shape
from cards.serve.streaming import EventStream, unless_gone

REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request asks for something that does not exist, or not here."},
    401: {"description": "No API key, or a wrong one."},
    404: {"description": "Another model is served."},
    408: {"description": "The body took too long to arrive."},
    413: {"description": "The body is too large."},
    429: {"description": "The queue is full; Retry-After says when to come again."},
    503: {"description": "The reward or the model fails, or the server ends."},
}


def routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", responses=REFUSALS)

    @router.post("/completions", summary="Continue a text")
    async def completions(body: CompletionBody, request: Request) -> Response:
        return await answer(service, body, request, Completion, "cmpl")

    @router.post("/chat/completions", summary="Answer a conversation")
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        return await answer(service, body, request, Chat, "chatcmpl")

    @router.get("/models", summary="What is served")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(service)]}

    @router.get("/models/{name:path}", summary="One model")
    async def model(name: str) -> dict[str, Any]:
        if name != service.name:
            raise ApiError(404, f"Model {name!r} is not served here: this is {service.name!r}.", code="model_not_found")
        return _model(service)

    started = int(time.time())

    def _model(service: Service) -> dict[str, Any]:
        reward, methods = service.reward, service.methods
        ours: dict[str, Any] = {"format": FORMAT, "method": methods.default, "methods": sorted(methods.offered)}
        ours |= {"reward": reward.name if reward else None, "context": service.engine.context}
        ours |= {"max_tokens": service.options.max_tokens}
        return {"id": service.name, "object": "model", "created": started, "owned_by": "cards", "cards": ours}

    return router


async def answer(service: Service, body: Body, request: Request, kind: type[Shape], prefix: str) -> Response:
    """Raises ApiError, CardsError, or GoneError if the client leaves."""
    record: Record = request.state.record
    order = service.order(body, record.arrived)
    answering = record.answering = service.answering(order)
    shape = kind(f"{prefix}-{record.id}", service.name, order, service.reward.name if service.reward else None)
    async with AsyncExitStack() as held:
        held.push_async_callback(answering.aclose)
        with service.tracing.under(dict(request.headers)):
            await unless_gone(request.receive, answering.begin())
        if order.stream:
            wants_usage = body.stream_options is not None and body.stream_options.include_usage
            response: Response = EventStream(answering, shape, record, held.pop_all(), wants_usage)
        else:
            response = JSONResponse(shape.whole(await unless_gone(request.receive, _all(answering))))
        if any(choice.unaligned is not None for choice in order.choices):
            response.headers["X-Cards-Aligned"] = "false"
        return response


async def _all(answering: Answering) -> list[Item]:
    return [item async for item in answering.items()]
