"""A real server in a thread: completions by an engine in OpenAI's form, scores by a reward, and faults on demand."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

from cards.backends.local.engine import TransformersEngine
from cards.backends.local.sampling import draw
from cards.engines.detokenizer import Detokenizer
from cards.events import Prompt, Response
from cards.rewards.base import Reward
from cards.sampling import Sampling, uniforms

KNOWN = {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stream", "stream_options", "logprobs", "n", "stop"}


@contextmanager
def running(app: Any, port: int = 0) -> Iterator[str]:
    """Serve the app and yield its address."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=port, log_level="critical", lifespan="off", loop="asyncio", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


class Faulty:
    """The app behind a door that may fail: `faults` are what becomes of the next requests (None: nothing).

    A number is a status, `drop` a connection that breaks before an answer, `hang` one that stays silent, `text` an answer that
    is no JSON, `cut` one that breaks after its first part.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.faults: deque[int | str | None] = deque()
        self.retry_after: str | None = None
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.left = 0  # clients that left before the end

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {k.decode(): v.decode() for k, v in scope["headers"]}
        self.requests.append((scope["path"], headers))
        fault = self.faults.popleft() if self.faults else None
        if isinstance(fault, int):
            headers = {} if self.retry_after is None else {"Retry-After": self.retry_after}
            answer: Any = JSONResponse({"error": {"message": f"told to fail with {fault}"}}, fault, headers)
            await answer(scope, receive, send)
        elif fault == "drop":
            send.__self__.transport.abort()
        elif fault == "hang":
            while (await receive())["type"] != "http.disconnect":
                pass
            self.left += 1
        elif fault == "text":
            await PlainTextResponse("hello")(scope, receive, send)
        elif fault == "cut":
            parts = 0

            async def some(message: Any) -> None:
                nonlocal parts
                if message["type"] == "http.response.body" and message.get("body"):
                    parts += 1
                    if parts > 1:
                        send.__self__.transport.abort()
                        return
                await send(message)

            await self.app(scope, receive, some)
        else:
            await self.app(scope, receive, send)


@dataclass
class LM:
    """Completions by `engine`: with `top` log-probabilities at most, token ids or none, in the form of vLLM or of llama.cpp.

    llama.cpp's form is that of llama-server 0.7.0 (build 11669).
    """

    engine: TransformersEngine
    top: int = 20
    ids: bool = True
    strict: bool = False  # takes OpenAI's fields only, and `takes`
    takes: frozenset[str] = frozenset()
    form: str = "vllm"
    cooled: bool = False  # log-probabilities after temperature
    chunk: int = 1  # tokens in an event
    key: str | None = None
    owner: str = "somebody"
    pause: float = 0.0  # seconds before each token
    script: tuple[int, ...] = ()  # tokens that are drawn first
    bodies: list[dict[str, Any]] = field(default_factory=list)
    unfinished: int = 0  # streams
    drawn: int = 0

    def app(self) -> Faulty:
        api = FastAPI()
        api.get("/v1/models")(self.models)
        api.post("/v1/completions")(self.completions)
        if self.form == "llama.cpp":
            api.get("/props")(self.props)
        return Faulty(api)

    async def props(self) -> Any:
        own = self.engine.tokenizer
        return {"chat_template": own.chat_template, "bos_token": own.bos_token, "eos_token": own.eos_token}

    async def models(self) -> Any:
        if self.form == "llama.cpp":
            context, vocabulary = self.engine.context, len(self.engine.tokenizer)
            meta = {"n_vocab": vocabulary, "n_ctx": context, "n_ctx_train": 2 * context}
            return {"data": [{"id": "tiny.gguf", "owned_by": "llamacpp", "meta": meta}]}
        return {"data": [{"id": "tiny", "owned_by": self.owner, "root": "tiny", "max_model_len": self.engine.context}]}

    async def completions(self, request: Request) -> Any:
        body = await request.json()
        self.bodies.append(body)
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "Incorrect API key"}}, 401)
        if self.strict and (unknown := body.keys() - KNOWN - self.takes):
            return JSONResponse({"error": {"message": f"Unrecognized arguments: {sorted(unknown)}"}}, 400)
        if body.get("logprobs", 0) > self.top:
            return JSONResponse({"error": {"message": f"logprobs must be at most {self.top}"}}, 400)
        prompt = body["prompt"]
        ids = self.engine.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        if self.form == "llama.cpp":
            if len(ids) >= self.engine.context:
                sizes = f"request ({len(ids)} tokens) exceeds the available context size ({self.engine.context} tokens)"
                return JSONResponse({"error": {"message": f"{sizes}, try increasing it"}}, 400)
            body["max_tokens"] = min(body["max_tokens"], self.engine.context - len(ids))
        elif len(ids) + body["max_tokens"] > self.engine.context:
            return JSONResponse({"error": {"message": "This model's maximum context length is too small for it"}}, 400)
        events = self.written(tuple(ids), body)
        if body.get("stream"):
            return StreamingResponse(self.streamed(events, len(ids), body), media_type="text/event-stream")
        choice, *last = [choice async for choice in events]
        choice |= {"finish_reason": last[0]["finish_reason"]} if last else {}
        return {"choices": [choice | {"prompt_token_ids": list(ids)} if self.ids and self.form == "vllm" else choice]}

    async def streamed(self, choices: AsyncIterator[dict[str, Any]], read: int, body: dict[str, Any]) -> AsyncIterator[str]:
        self.unfinished += 1
        async for choice in choices:
            event: dict[str, Any] = {"choices": [choice]}
            if self.form == "llama.cpp" and (body.get("timings_per_token") or choice["finish_reason"]):
                event["timings"] = {"cache_n": 3, "prompt_n": read - 3}
            if self.form == "llama.cpp" and choice["finish_reason"]:
                event["usage"] = {"prompt_tokens": read, "prompt_tokens_details": {"cached_tokens": 3}}
            yield f"data: {json.dumps(event)}\n\n"
        if self.form == "vllm":
            yield 'data: {"choices": [], "usage": {"prompt_tokens": 7}}\n\n'
        yield "data: [DONE]\n\n"
        self.unfinished -= 1

    async def written(self, ids: tuple[int, ...], body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        sampling = Sampling(body.get("temperature", 1.0), body.get("top_k") or None, body.get("top_p", 1.0))
        most, tokenizer = body["max_tokens"], self.engine.tokenizer
        u = uniforms(body.get("seed", 0), 0, 0, most)
        silent = self.engine.end_ids | (
            frozenset(tokenizer.all_special_ids) if body.get("skip_special_tokens", True) else frozenset()
        )
        text, told = Detokenizer(tokenizer, ids, silent), 0
        drawn: list[int] = []
        waiting: list[tuple[int, np.ndarray]] = []
        while True:
            await asyncio.sleep(self.pause)
            logits = torch.tensor(await self.engine.logits(Prompt("", ids), Response("", tuple(drawn))))
            token = int(draw(logits, sampling, torch.tensor([u[len(drawn)]])))
            token = self.script[len(drawn)] if len(drawn) < len(self.script) else token
            shown = logits[0].double() / (sampling.temperature if self.cooled else 1)
            waiting.append((token, shown.log_softmax(-1).numpy()))
            drawn.append(token)
            self.drawn += 1
            ended = "stop" if token in self.engine.end_ids else "length" if len(drawn) == most else None
            if ended or len(waiting) == self.chunk:
                now = text.push([t for t, _ in waiting])
                apart = self.form == "llama.cpp"  # its end comes by itself, and of a character's tokens the last one
                if not apart or len(now) > told or ended == "stop":
                    yield self.choice(now[told:], waiting, None if apart else ended, body)
                if apart and ended:
                    yield {"index": 0, "text": "", "logprobs": None, "finish_reason": ended}
                told, waiting = len(now), []
            if ended:
                return

    def choice(
        self, text: str, tokens: list[tuple[int, np.ndarray]], ended: str | None, body: dict[str, Any]
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": ended}
        if self.ids and self.form == "vllm":
            choice["token_ids"] = [t for t, _ in tokens]
        if not body.get("logprobs"):
            return choice
        named = [(self.name(t), t, self.likeliest(p, body["logprobs"], t)) for t, p in tokens]
        if self.form == "llama.cpp":
            [(_, token, top)] = named
            tops = [{"id": i, "token": self.name(i, skip_special_tokens=True), "logprob": p} for i, p in top.items()]
            entry = {"id": token, "token": text, "bytes": [*text.encode()], "top_logprobs": tops}
            return choice | {"logprobs": {"content": [entry]}}
        as_ids = self.ids and body.get("return_tokens_as_token_ids")
        shown = [{(f"token_id:{i}" if as_ids else self.name(i)): p for i, p in top.items()} for _, _, top in named]
        return choice | {"logprobs": {"tokens": [name for name, _, _ in named], "top_logprobs": shown}}

    def name(self, token: int, **options: Any) -> str:
        return str(self.engine.tokenizer.decode([token], **options))

    def likeliest(self, logprobs: np.ndarray, count: int, drawn: int) -> dict[int, float]:
        found = np.argsort(-logprobs, kind="stable")[:count].tolist()
        return {int(i): float(logprobs[i]) for i in dict.fromkeys([*found, drawn] if self.form == "vllm" else found)}


def rewards(reward: Reward, engine: TransformersEngine, answer: Callable[[list[float]], Any] | None = None) -> Faulty:
    """Scores in the forms of text-embeddings-inference and of plain JSON; `answer` makes other answers of the latter."""
    api = FastAPI()

    async def scored(prompt: str, responses: list[str]) -> list[float]:
        encoded = engine.encode(prompt)
        return await reward.score(encoded, [Response(text, engine.tokenize(text)) for text in responses])

    @api.post("/")
    @api.post("/score")
    async def plain(body: dict[str, Any]) -> Any:
        found = await scored(body["prompt"], body["responses"])
        return answer(found) if answer else {"rewards": found}

    @api.post("/rerank")
    async def rerank(body: dict[str, Any]) -> Any:
        assert body["raw_scores"]
        found = await scored(body["query"], body["texts"])
        ranks = [{"index": i, "score": score} for i, score in enumerate(found)]
        return sorted(ranks, key=lambda rank: -rank["score"])

    @api.post("/predict")
    async def predict(body: dict[str, Any]) -> Any:
        assert body["raw_scores"]
        found = [(await scored(text, [""]))[0] for [text] in body["inputs"]]
        return [
            sorted([{"label": "good", "score": s}, {"label": "bad", "score": -s}], key=lambda p: -p["score"]) for s in found
        ]

    @api.get("/info")
    async def info() -> Any:
        return {"model_id": "tiny", "model_type": {"reranker": {"id2label": {"0": "good"}}}, "max_input_length": 512}

    return Faulty(api)
