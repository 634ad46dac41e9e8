"""A vLLM server that has our logits processor: draws and boundaries are made there; token ids go in and come out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from cards.backends.http.client import Client
from cards.backends.http.openai import Depth, OpenAIEngine
from cards.backends.vllm.options import DRAWN, options_of
from cards.boundaries import Entropy
from cards.engines.ask import Ask
from cards.engines.ordered import in_order
from cards.engines.writer import Writer
from cards.errors import MismatchError, SettingError, UnavailableError
from cards.events import Segment

PLAIN = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
FLAG = "--logprobs-mode processed_logits"


class VLLMHTTPEngine(OpenAIEngine):
    """The candidates of an ask are one request, or one each where text ends their segments; in float32 they are those of
    TransformersEngine, token by token. The server tells of each token whether it was drawn or stands for a boundary, and then
    how unsure the LM was (see `vllm_options`)."""

    @property
    def stop_id(self) -> int:
        """Stands for a boundary: one of the ids that end a request anyway."""
        return min(self.end_ids, default=self.served.vocabulary - 1)

    async def propose(self, ask: Ask) -> AsyncGenerator[list[Segment], None]:
        if ask.boundary.reads_logits and not isinstance(ask.boundary, Entropy):
            raise MismatchError(f"{type(ask.boundary).__name__} boundaries cannot be had from a vLLM server: Entropy can.")
        depth = Depth()
        if ask.n > 1 and (ask.stop or ask.boundary.reads_text):  # a stream can be left, one candidate of it cannot
            alone = [replace(ask, first=ask.first + i, n=1) for i in range(ask.n)]
            batches = in_order([self._one(one, depth) for one in alone])
        else:
            batches = self._together(ask, depth)
        async with aclosing(batches):
            async for batch in batches:
                depth.book()
                yield batch
                depth.resume()

    async def _one(self, ask: Ask, depth: Depth) -> Segment:
        [segment] = [segment async for batch in self._together(ask, depth) for segment in batch]
        return segment

    async def _together(self, ask: Ask, depth: Depth) -> AsyncGenerator[list[Segment], None]:
        writers = [self.writer(ask) for _ in range(ask.n)]
        given, ended, booked = 0, 0, (0, 0)
        body = self._request(ask, writers[0].most)
        async with aclosing(self.client.events("/completions", body)) as events:
            async for event in events:
                for choice in event["choices"]:
                    self._take(writers[choice["index"]], choice, depth)
                    ended += choice.get("finish_reason") is not None
                booked = self._book(event, len(body["prompt"]), booked, depth)
                ready = [writer.segment for writer in writers[given:]]
                ready = ready[: ready.index(None)] if None in ready else ready
                if given + len(ready) == ask.n and ended < ask.n:
                    break  # by text; where all have ended by themselves, the last words are near
                if ready and given + len(ready) < ask.n:
                    yield ready  # type: ignore[misc]
                    given += len(ready)
        last = [writer.segment for writer in writers[given:] if writer.segment is not None]
        if given + len(last) < ask.n:
            raise UnavailableError(f"The server at {self.client.address} ended a stream before all candidates were complete.")
        yield last

    def _request(self, ask: Ask, most: int) -> dict[str, Any]:
        return PLAIN | {
            "model": self.served.model,
            "prompt": [*ask.prompt.token_ids, *ask.response.token_ids],
            "n": ask.n,
            "seed": ask.first,
            "temperature": 0 if ask.n == 1 else 1,
            "max_tokens": most,
            "stop_token_ids": sorted(self.end_ids | {self.stop_id}),
            "logprobs": 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "vllm_xargs": options_of(ask, self.stop_id),
        }

    def _take(self, writer: Writer, choice: dict[str, Any], depth: Depth) -> None:
        tokens = choice["token_ids"] or ()
        for token, value in zip(tokens, (choice["logprobs"] or {}).get("token_logprobs", ()), strict=True):
            depth.reach(len(writer.tokens) + 1)
            if value == DRAWN:
                depth.account.add(decoded_tokens=1)
                if writer.segment is None:
                    writer.push(token)
            elif writer.segment is None:
                writer.end(entropy=value)
        if writer.segment is None and (reason := choice.get("finish_reason")):
            writer.end("stop" if reason == "stop" else "length")


async def check_mode(client: Client, model: str) -> None:
    """Raise SettingError unless the server shows what our processor tells."""
    body = PLAIN | {"model": model, "prompt": "a", "max_tokens": 1, "seed": 0, "temperature": 0, "logprobs": 0}
    [choice] = (await client.post("/completions", body | {"vllm_xargs": {"cards_seed": 0}}))["choices"]
    if choice["logprobs"]["token_logprobs"] != [DRAWN]:
        raise SettingError(f"The vLLM server at {client.address} must be started with {FLAG}: boundaries are told that way.")
