"""`/tokenize`, `/detokenize` and `/tokenizer_info`, as vLLM has them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, Field

from cards.engines.base import Engine
from cards.engines.text import check_ids
from cards.errors import CardsError
from cards.prompts import Chat
from cards.serve.catalog import Catalog
from cards.serve.errors import ApiError
from cards.serve.responses import documented
from cards.serve.routes import ERRORS, key_of
from cards.serve.schemas import AnyTokens, ChatMessage, Flag, OpenModel, Text, check_variables, few
from cards.serve.service import Service

T = TypeVar("T")
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


class TokenizeBody(OpenModel):
    """A text, or messages for the chat template. By default a text gets the tokens that precede every text, a chat does not."""

    model: str | None = None
    prompt: Text | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1), BeforeValidator(few)] | None = None
    add_special_tokens: Flag | None = None
    add_generation_prompt: Flag | None = None
    continue_final_message: Flag = False
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: Flag | None = False

    def check(self, tolerant: bool) -> None:
        """Raise ApiError (400) for fields that contradict each other."""
        self.check_undeclared(tolerant)
        if (self.prompt is None) == (self.messages is None):
            raise ApiError(400, "Give either prompt or messages.", param="prompt")
        if self.continue_final_message and self.add_generation_prompt:
            why = "continue_final_message and add_generation_prompt cannot both be true."
            raise ApiError(400, why, param="add_generation_prompt")
        check_variables(self.chat_template_kwargs)


class DetokenizeBody(OpenModel):
    model: str | None = None
    tokens: AnyTokens


class TokenList(BaseModel):
    """Token ids, their number, the context of the model in tokens, and the names of the tokens on demand."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class TokenizerInfo(BaseModel):
    """Special tokens and the chat template; None for those that the tokenizer does not have."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None


class PromptBody(BaseModel):
    prompt: str


def tokenization(catalog: Catalog) -> APIRouter:
    router = APIRouter(responses=ERRORS)

    @router.post("/tokenize", summary="Split a text or messages into tokens", responses=documented(TokenList))
    async def tokenize(body: TokenizeBody, request: Request) -> dict[str, Any]:
        service = catalog.find(body.model)
        body.check(service.options.unknown_fields == "ignore")
        with catalog.meters.request(key_of(request), 0, lambda: 0):
            ids = await _in_thread(service, lambda: token_ids(service, body))
        names = token_names(service.engine, ids) if body.return_token_strs else None
        return {"count": len(ids), "max_model_len": service.engine.context, "tokens": ids, "token_strs": names}

    @router.post("/detokenize", summary="Join tokens to a text", responses=documented(PromptBody))
    async def detokenize(body: DetokenizeBody, request: Request) -> dict[str, Any]:
        service = catalog.find(body.model)
        body.check_undeclared(service.options.unknown_fields == "ignore")
        engine = service.engine
        check_ids(body.tokens, service.name, engine.vocab_size)
        engine.check_token_ids()
        with catalog.meters.request(key_of(request), 0, lambda: 0):
            return {"prompt": await _in_thread(service, lambda: str(engine.tokenizer.decode(body.tokens)))}

    @router.get("/tokenizer_info", summary="Describe the tokenizer", responses=documented(TokenizerInfo))
    async def tokenizer_info(model: str | None = None) -> dict[str, Any]:
        service = catalog.find(model)
        service.engine.check_token_ids()
        found = {name: getattr(service.engine.tokenizer, name, None) for name in SPECIAL}
        template = getattr(service.engine.tokenizer, "chat_template", None)
        described = {name: None if token is None else str(token) for name, token in found.items()}
        return described | {"chat_template": template if isinstance(template, str) else None}

    return router


async def _in_thread(service: Service, work: Callable[[], T]) -> T:
    """Return the result of work in the threads for tokenizing. Raises ApiError, also if too many requests wait for them."""
    await service.shared.tokenizing_gate.enter(1)
    try:
        return await asyncio.get_running_loop().run_in_executor(service.shared.tokenizing, work)
    finally:
        service.shared.tokenizing_gate.leave()


def token_ids(service: Service, body: TokenizeBody) -> list[int]:
    """Return the tokens of a text, or of messages in the chat template with the defaults of the server.

    Raises ApiError or CardsError.
    """
    engine: Engine = service.engine
    tokenizer: Any = engine.tokenizer if callable(engine.tokenizer) else None
    if body.messages is None:
        text = body.prompt or ""
        service.check_length(text)
        whole = tokenizer is not None and body.add_special_tokens is not False
        return list(tokenizer(text)["input_ids"] if whole else engine.tokenize(text))
    turns = [message.message for message in body.messages]
    continued = body.continue_final_message
    chat: Any = service.options.chat(Chat(turns, body.chat_template_kwargs or {}, continued=continued))
    service.check_length(chat)
    if tokenizer is None or getattr(tokenizer, "chat_template", None) is None:
        return list(engine.encode(chat).token_ids)
    opened = not continued and body.add_generation_prompt is not False
    try:
        text = tokenizer.apply_chat_template(
            list(chat),
            tokenize=False,
            add_generation_prompt=opened,
            continue_final_message=continued,
            **chat.chat_template_kwargs,
        )
    except CardsError:
        raise
    except Exception as error:  # templates raise errors of many types
        raise ApiError(400, f"The model's chat template rejects these messages: {error}.", param="messages") from error
    return list(tokenizer(text, add_special_tokens=bool(body.add_special_tokens))["input_ids"])


def token_names(engine: Engine, ids: list[int]) -> list[str]:
    """Return the names of tokens in the vocabulary, or else their texts."""
    names: Any = getattr(engine.tokenizer, "convert_ids_to_tokens", None)
    return [str(name) for name in names(ids)] if names else [str(engine.tokenizer.decode([token])) for token in ids]
