"""An engine for vLLM servers with the logits processor of this package, which draws tokens and ends segments there."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, ClassVar

from cards.backends.http.client import Client
from cards.backends.http.openai import OpenAIEngine, ParallelProgress
from cards.backends.vllm.options import DRAWN, check_drawn, check_supported, request_options, shaping_options
from cards.boundaries import Boundary
from cards.engines.ask import Ask
from cards.engines.writer import Writer
from cards.errors import SettingError, UnavailableError
from cards.events import Segment

NEUTRAL = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
FLAG = "--logprobs-mode processed_logits"


class VLLMHTTPEngine(OpenAIEngine):
    """An engine that sends one request per ask, or one per candidate if text ends the segments.

    In float32 its tokens equal those of TransformersEngine. The log-probability of each token shows whether it was drawn or
    marks a boundary, and then the uncertainty (see `cards.backends.vllm.options`).
    """

    has: ClassVar[frozenset[str]] = frozenset({"segments", "shaping"})

    @property
    def stop_id(self) -> int:
        """Return the token id that marks a boundary: an end token, which ends a request in any case."""
        return min(self.end_ids, default=self.served.vocabulary - 1)

    def check_boundary(self, boundary: Boundary) -> None:
        check_supported(boundary)

    def _batches(self, ask: Ask, progress: ParallelProgress) -> AsyncGenerator[list[Segment], None]:
        if ask.n > 1 and (ask.stop or ask.boundary.reads_text):  # a single candidate of a stream cannot be cancelled
            return super()._batches(ask, progress)
        return self._together(ask, progress)

    async def _candidate(self, ask: Ask, progress: ParallelProgress) -> Segment:
        [segment] = [segment async for batch in self._together(ask, progress) for segment in batch]
        return segment

    async def _together(self, ask: Ask, progress: ParallelProgress) -> AsyncGenerator[list[Segment], None]:
        writers = [self.writer(ask) for _ in range(ask.n)]
        yielded, finished, recorded = 0, 0, (0, 0)
        body = self._request_body(ask, writers[0].most)
        async with aclosing(self.client.events("/completions", body)) as events:
            async for event in events:
                for choice in event["choices"]:
                    self._write(writers[choice["index"]], choice, progress)
                    finished += choice.get("finish_reason") is not None
                recorded = self._record_usage(event, len(body["prompt"]), recorded, progress)
                ready = [writer.segment for writer in writers[yielded:]]
                ready = ready[: ready.index(None)] if None in ready else ready
                if yielded + len(ready) == ask.n and finished < ask.n:
                    break  # text ended a segment; otherwise the usage event is about to come
                if ready and yielded + len(ready) < ask.n:
                    yield ready  # type: ignore[misc]
                    yielded += len(ready)
        last = [writer.segment for writer in writers[yielded:] if writer.segment is not None]
        if yielded + len(last) < ask.n:
            raise UnavailableError(f"The server at {self.client.address} ended a stream before all candidates were complete.")
        yield last

    def _request_body(self, ask: Ask, max_tokens: int) -> dict[str, Any]:
        return NEUTRAL | {
            "model": self.served.model,
            "prompt": [*ask.prompt.token_ids, *ask.response.token_ids],
            "n": ask.n,
            "seed": ask.first,
            "temperature": 0 if ask.n == 1 else 1,
            "max_tokens": max_tokens,
            "stop_token_ids": sorted(self.end_ids | {self.stop_id}),
            "logprobs": 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "vllm_xargs": request_options(ask, self.stop_id) | shaping_options(ask, self),
        }

    def _write(self, writer: Writer, choice: dict[str, Any], progress: ParallelProgress) -> None:
        tokens = choice["token_ids"] or ()
        for token, value in zip(tokens, (choice["logprobs"] or {}).get("token_logprobs", ()), strict=True):
            progress.reach(len(writer.tokens) + 1)
            if writer.segment is None:
                check_drawn(value, writer.position)
            if value == DRAWN:
                progress.account.add(decoded_tokens=1)
                if writer.segment is None:
                    writer.push(token)
            elif writer.segment is None:
                writer.end(entropy=value)
        if writer.segment is None and (reason := choice.get("finish_reason")):
            writer.end("stop" if reason == "stop" else "length")


async def check_mode(client: Client, model: str) -> None:
    """Raise SettingError unless the server returns the log-probabilities that the logits processor writes."""
    body = NEUTRAL | {"model": model, "prompt": "a", "max_tokens": 1, "seed": 0, "temperature": 0, "logprobs": 0}
    [choice] = (await client.post("/completions", body | {"vllm_xargs": {"cards_seed": 0}}))["choices"]
    if choice["logprobs"]["token_logprobs"] != [DRAWN]:
        raise SettingError(f"The vLLM server at {client.address} must be started with {FLAG}, which reports boundaries.")
