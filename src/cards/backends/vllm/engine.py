"""The vLLM engine: a logits processor inside vLLM draws the tokens and ends the segments."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cards.backends.configuration import end_ids, flops_per_token, vocab_size
from cards.backends.generation import EXCLUDING, repetition_penalty, warn_of_ignored
from cards.backends.vllm.check import prepare
from cards.backends.vllm.host import Host
from cards.backends.vllm.options import check_drawn, check_supported, request_options, shaping_options
from cards.boundaries import Boundary
from cards.engines.base import Ask, Engine, call_in_loop
from cards.engines.ordered import OrderedQueue
from cards.engines.text import check_fits, check_ids, encode
from cards.errors import ModelError, UnavailableError
from cards.events import Message, Prompt, Segment
from cards.fingerprint import fingerprint
from cards.usage import current_account


class VLLMEngine(Engine):
    """A causal LM in vLLM that decodes up to `slots` sequences at once. Further requests wait.

    In float32 its tokens equal those of TransformersEngine. `model` has the configuration, but no weights. On a GPU, vLLM
    allocates a fraction of the memory at the start (`gpu_memory_utilization`). The default here is 0.5, which leaves room
    for a reward model.
    """

    libraries = frozenset({"vllm"})
    has: ClassVar[frozenset[str]] = frozenset({"segments", "shaping"})
    tokenizer: PreTrainedTokenizerBase

    def __init__(
        self, host: Host, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, slots: int, context: int, name: str
    ) -> None:
        self.host, self.parts, self.tokenizer, self.name = host, (host,), tokenizer, name
        self.rows, self.context = slots, context
        self.chats = tokenizer.chat_template is not None
        self.vocabulary, self.vocab_size = fingerprint(tokenizer), vocab_size(model)
        self.entropy_threshold = getattr(model.config, "cards_entropy_threshold", Engine.entropy_threshold)
        self.end_ids = end_ids(model, tokenizer)
        self.repetition_penalty = repetition_penalty(model)
        warn_of_ignored(model, name, EXCLUDING)
        self.flops = flops_per_token(model)

    @classmethod
    def load(
        cls,
        name: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        slots: int = 32,
        context: int | None = None,
        token: str | None = None,
        **options: Any,
    ) -> VLLMEngine:
        """Load `tiny`, a folder, or a Hugging Face name. Options are those of vLLM's AsyncEngineArgs; token: see `load_engine`.

        Raises UnknownNameError, ModelError or SettingError.
        """
        checkpoint, model, length = prepare(
            name, "lm", device=device, dtype=dtype, slots=slots, context=context, token=token, **options
        )
        tokenizer = checkpoint.tokenizer()
        defaults = {"gpu_memory_utilization": 0.5, "logprobs_mode": "processed_logits", "generation_config": "vllm"}
        checkpoint.fetch()
        host = Host(
            str(checkpoint.base.folder), name, device, dtype, max_num_seqs=slots, max_model_len=length, **defaults | options
        )
        return cls(host, model, tokenizer, slots=slots, context=length, name=f"vllm:{name}")

    def encode(self, prompt: str | Sequence[Message]) -> Prompt:
        return check_fits(encode(self.tokenizer, prompt), self.name, self.context, self.vocab_size)

    def tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def check_boundary(self, boundary: Boundary) -> None:
        check_supported(boundary)

    def params(self, ask: Ask, number: int, max_tokens: int) -> dict[str, Any]:
        """Return vLLM's SamplingParams for candidate `number` (from 0) of an ask."""
        return {
            "temperature": 0.0,
            "seed": ask.first + number,
            "max_tokens": max_tokens,
            "ignore_eos": True,  # end_ids has all end tokens
            "stop_token_ids": sorted(self.end_ids),
            "logprobs": 0,
            "extra_args": request_options(ask, stop=min(self.end_ids, default=0)) | shaping_options(ask, self),
        }

    async def propose(self, ask: Ask) -> AsyncGenerator[list[Segment], None]:
        requests = VLLMRequests(ask, self)
        future = self.host.submit(requests.run)
        try:
            while requests.candidates.remaining:
                yield await requests.candidates.receive()
        finally:
            future.cancel()

    def width(self, acceptance_rate: float, most: int) -> int:
        """Return the expected number of candidates until an acceptance, or fewer if many requests share the slots."""
        return max(1, min(most, self.rows // max(1, self.requests), math.ceil(1 / acceptance_rate)))


class VLLMRequests:
    """The vLLM requests of an ask, one per candidate. The candidates are returned in order."""

    def __init__(self, ask: Ask, engine: VLLMEngine) -> None:
        self.ask, self.engine, self.account = ask, engine, current_account()
        self.prefix = [*ask.prompt.token_ids, *ask.response.token_ids]
        check_ids(self.prefix, engine.name, engine.vocab_size)
        self.loop = asyncio.get_running_loop()
        self.candidates = OrderedQueue(ask.n)
        self.costs = {"steps": 0, "prefill_tokens": 0, "decoded_tokens": 0, "cached_tokens": 0, "seconds": 0.0}
        self.read = 0

    async def run(self) -> None:
        """Draw all candidates, in the event loop of the host."""
        start = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                for i in range(self.ask.n):
                    group.create_task(self._write(i))
        except ExceptionGroup as errors:
            self.candidates.fail(errors.exceptions[0])
        except asyncio.CancelledError:
            self.candidates.fail(ModelError("The model was closed while it served this request."))
            raise
        finally:
            self.costs["seconds"] = time.perf_counter() - start
            flops = self.engine.flops * self.read
            call_in_loop(self.loop, lambda: self.account.add(flops=flops, **self.costs))

    async def _write(self, number: int) -> None:
        """Draw tokens of a candidate until its segment ends."""
        writer = self.engine.writer(self.ask)
        params = self.engine.params(self.ask, number, writer.most)
        steps = 0
        async with aclosing(self.engine.host.generate(self.prefix, **params)) as outputs:
            async for output in outputs:
                if not steps:
                    self.costs["cached_tokens"] += output.num_cached_tokens
                    self.costs["prefill_tokens"] += len(self.prefix) - output.num_cached_tokens
                    self.read += len(self.prefix) - output.num_cached_tokens - 1
                [part] = output.outputs
                for token, values in zip(part.token_ids, part.logprobs, strict=True):
                    steps += 1
                    self.read += 1
                    value = values[token].logprob
                    if writer.segment is None:
                        check_drawn(value, writer.position)
                    self.costs["decoded_tokens"] += value < 0
                    if writer.segment is None:
                        writer.end(entropy=value) if value >= 0 else writer.push(token)
                self.costs["steps"] = max(steps, self.costs["steps"])
                if writer.segment is not None and not output.finished:
                    break
        if writer.segment is None:
            raise UnavailableError(f"vLLM ended a request of model {self.engine.name!r} before its segment was complete.")
        self.candidates.finish(number, writer.segment)
        self.candidates.deliver()
