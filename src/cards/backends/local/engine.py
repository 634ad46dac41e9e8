"""The in-process engine: causal LMs of Hugging Face transformers in cache slots, with continuous batching."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from cards.backends.configuration import context_length, end_ids, vocab_size
from cards.backends.local.loading import load
from cards.backends.local.own_cache import OwnCache, own_slots
from cards.backends.local.proof import lm_outputs, lm_proof, verified_slots
from cards.backends.local.sampling import draw, uncertainty
from cards.backends.local.skipping import layers_to_skip, without_layers
from cards.boundaries import Boundary
from cards.engines.base import Ask, Engine
from cards.engines.ordered import OrderedQueue
from cards.engines.scheduler import PendingCall, PendingResult, Row, Scheduler, Tail
from cards.engines.slots import Slots
from cards.engines.text import check_fits, check_ids, encode
from cards.engines.worker import DeviceWorker
from cards.errors import ModelError, check
from cards.events import Message, Prompt, Response, Segment
from cards.fingerprint import fingerprint
from cards.sampling import Sampling, invalid_logits, uniforms

log = logging.getLogger("cards")
Reduce = Callable[[Tensor], NDArray[Any]]


class TransformersEngine(Engine):
    """A causal LM whose rows share one KV cache of `slots` x `context` tokens. Further rows wait for a free slot.

    On a CPU prefer `load` to passing a model: computation in other threads can slow down every step (see DeviceWorker.call).
    A model whose layers do not run exactly in slots runs with its own cache, which is slower; a warning gives the reason.
    Raises ModelError if that is not exact either.
    """

    has: ClassVar[frozenset[str]] = frozenset({"segments", "logits", "logprobs"})
    tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        slots: int = 32,
        context: int | None = None,
        name: str | None = None,
    ) -> None:
        self.model, self.tokenizer = model.train(False), tokenizer
        self.name = name or model.name_or_path or type(model).__name__
        self.context, self.rows = context_length(model, context), slots
        self.chats = tokenizer.chat_template is not None
        self.vocabulary, self.vocab_size = fingerprint(tokenizer), vocab_size(model)
        self.entropy_threshold = getattr(model.config, "cards_entropy_threshold", Engine.entropy_threshold)
        self.scheduler = Scheduler(DeviceWorker.on(model.device).call(lambda: self._slots(slots)), self._consume)
        self.parts = (self.scheduler,)
        self.end_ids = end_ids(model, tokenizer)
        self._without_layers: dict[float, TransformersEngine] = {}  # by the fraction of skipped layers
        self._logits: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()  # [1, vocabulary] after recent sequences

    def _slots(self, rows: int) -> Slots:
        """Return slots with a shared KV cache, or with the model's own caches if the model does not run in slots."""
        if getattr(self.model, "is_loaded_in_8bit", False):
            raise ModelError(
                f"Model {self.name!r} has 8-bit weights of bitsandbytes, whose outputs depend on the other texts of a batch. "
                "Use 4-bit weights or another quantisation."
            )
        proof = lm_proof(self.model, self.context)
        try:
            return verified_slots(proof, lm_outputs(self.model, self.context), rows, self.context)
        except ModelError as error:
            slots = own_slots(proof, rows, self.context)
            way = "runs with its own cache, which is exact but slower"
            if cast(OwnCache, slots.cache).argument is None:
                way = "reads the whole text at each step, which is exact but slow, because its own cache is not exact"
            log.warning("Model %r %s: %s", self.name, way, error)
            return slots

    @property
    def rows_in_use(self) -> int:
        return len(self.scheduler.active)

    @classmethod
    def load(
        cls, name: str, *, device: str = "auto", dtype: str = "auto", slots: int = 32, context: int | None = None
    ) -> TransformersEngine:
        """Load `tiny`, a folder, or a Hugging Face name. Raises UnknownNameError, ModelError or SettingError."""
        model, tokenizer = load(AutoModelForCausalLM, name, "lm", device, dtype)
        return cls(model, tokenizer, slots=slots, context=context, name=name)

    def encode(self, prompt: str | Sequence[Message]) -> Prompt:
        return check_fits(encode(self.tokenizer, prompt), self.name, self.context, self.vocab_size)

    def tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    async def propose(self, ask: Ask) -> AsyncGenerator[list[Segment], None]:
        proposal = PendingProposal(ask, self)
        check_ids(proposal.prefix, self.name, self.vocab_size)
        self.scheduler.submit(lambda: self._begin(proposal), proposal)
        try:
            while proposal.segments.remaining:
                yield await proposal.segments.receive()  # the remaining candidates pause until the caller asks for them
                proposal.paused = False
                self.scheduler.worker.wake(expected=True)
        finally:
            proposal.cancelled = True
            self.scheduler.worker.wake()

    async def logits(self, prompt: Prompt, response: Response, last: int = 1) -> NDArray[np.float32]:
        ids = [*prompt.token_ids, *response.token_ids]
        return cast("NDArray[np.float32]", await self._read(prompt, ids, last, lambda logits: _numpy(logits.float())))

    async def logprobs(
        self, prompt: Prompt, response: Response, last: int | None = None, temperature: float = 1.0
    ) -> NDArray[np.float64]:
        ids = list(response.token_ids)
        last = len(ids) if last is None else last
        check(0 <= last <= len(ids), f"last must be between 0 and {len(ids)}, the length of the response, got {last}.")
        if not last:
            return np.zeros(0)
        drawn = torch.tensor(ids[len(ids) - last :]).unsqueeze(1)

        def reduce(logits: Tensor) -> NDArray[np.float64]:
            return _numpy((logits.double() / temperature).log_softmax(-1).gather(1, drawn.to(logits.device))[:, 0])

        return cast("NDArray[np.float64]", await self._read(prompt, [*prompt.token_ids, *ids[:-1]], last, reduce))

    async def _read(self, prompt: Prompt, tokens: list[int], last: int, reduce: Reduce) -> Any:
        check(1 <= last <= len(tokens), f"last must be between 1 and {len(tokens)}, the length of the text, got {last}.")
        check_ids(tokens, self.name, self.vocab_size)
        pending = PendingResult()

        def finish(logits: Tensor) -> None:
            self.scheduler.worker.expected += 1  # callers that read logits usually call again
            pending.resolve(reduce(logits))

        def begin() -> Sequence[Row]:
            if last == 1 and (known := self._logits.get(tuple(tokens))) is not None:
                finish(known)
                return ()
            return [Tail(pending, tokens, len(prompt.token_ids), last, finish)]

        self.scheduler.submit(begin, pending)
        return await pending.wait()

    def width(self, acceptance_rate: float, most: int) -> int:
        """Return the number of candidates with the least work per accepted segment.

        Each row adds `row_cost` to a step, in the LM and in the RM, for all requests.
        """
        requests = max(1, self.requests)
        cost = 2 * self.scheduler.pace.row_cost * requests
        limit = max(1, min(most, self.rows // requests))
        return min(range(1, limit + 1), key=lambda k: (1 + cost * k) / (1 - (1 - acceptance_rate) ** k))

    def without_layers(self, share: float) -> TransformersEngine:
        if share not in self._without_layers:
            skipped = layers_to_skip(self.model, share)
            model, name = without_layers(self.model, skipped), f"{self.name} without {len(skipped)} layers"
            self._without_layers[share] = TransformersEngine(
                model, self.tokenizer, slots=self.rows, context=self.context, name=name
            )
        return self._without_layers[share]

    def forget(self) -> None:
        super().forget()
        self.scheduler.do(self._logits.clear)

    # The methods below run in the worker thread.

    def _begin(self, proposal: PendingProposal) -> Sequence[Row]:
        """Return the candidates if the logits after their prefix are known, otherwise one row that reads the prefix."""
        slots = self.scheduler.slots
        logits = self._logits.get(tuple(proposal.prefix))
        if logits is None or slots.match(np.array(proposal.prefix)).max() < len(proposal.prefix):
            return [Row(proposal, proposal.prefix)]
        return proposal.candidates(logits)

    @torch.inference_mode()
    def _consume(self, rows: Sequence[Row], logits: Tensor) -> list[Row]:
        admitted: list[Row] = []
        drawing: list[tuple[Candidate, int]] = []
        for i, row in enumerate(rows):
            if isinstance(row, Candidate):
                drawing.append((row, i))
            else:
                row.done = True
                self._remember(row.tokens, logits[i : i + 1])
                admitted += row.call.candidates(logits[i : i + 1])  # type: ignore[attr-defined]
        drawing = self._stop_before(drawing, logits)
        by_sampling: dict[Sampling, list[tuple[Candidate, int]]] = {}
        for candidate, i in drawing:
            by_sampling.setdefault(candidate.call.ask.sampling, []).append((candidate, i))
        for sampling, members in by_sampling.items():
            u = torch.tensor([c.uniforms[c.drawn] for c, _ in members], dtype=torch.float64, device=logits.device)
            for (candidate, _), token in zip(members, draw(_rows_of(logits, members), sampling, u).tolist(), strict=True):
                candidate.push(token)
        for call in {row.call for row in rows if isinstance(row, Candidate) and row.done}:
            call.deliver()
        return admitted

    def _stop_before(self, drawing: list[tuple[Candidate, int]], logits: Tensor) -> list[tuple[Candidate, int]]:
        """End the candidates whose boundary precedes the next token. Return the remaining candidates."""
        by_boundary: dict[Boundary, list[tuple[Candidate, int]]] = {}
        for candidate, i in drawing:
            boundary = candidate.call.ask.boundary
            if boundary.reads_logits and candidate.drawn >= boundary.minimum:
                by_boundary.setdefault(boundary, []).append((candidate, i))
        for boundary, members in by_boundary.items():
            values = uncertainty(boundary, _rows_of(logits, members)).tolist()
            for (candidate, i), value in zip(members, values, strict=True):
                if boundary.ends_before(value):
                    self._remember(candidate.tokens, logits[i : i + 1])
                    candidate.end(value)
        return [(candidate, i) for candidate, i in drawing if not candidate.done]

    def _remember(self, tokens: Sequence[int], logits: Tensor) -> None:
        self._logits[tuple(tokens)] = logits.clone()
        while len(self._logits) > 4 * self.rows:
            self._logits.popitem(last=False)


class PendingProposal(PendingCall):
    """A call of `propose`, with its candidates and the queue that returns them in order."""

    def __init__(self, ask: Ask, engine: TransformersEngine) -> None:
        super().__init__()
        self.ask, self.engine = ask, engine
        self.prefix = [*ask.prompt.token_ids, *ask.response.token_ids]
        self.segments = OrderedQueue(ask.n)

    def candidates(self, logits: Tensor) -> list[Row]:
        return [Candidate(self, i, logits) for i in range(self.ask.n)]

    def deliver(self) -> None:
        """Hand out all candidates up to the first unfinished one. The rest pause until the caller asks for them."""
        self.paused = True  # set before the hand-out, because the caller may ask for more at once
        if self.segments.deliver():
            self.engine.scheduler.worker.expected += 1
        else:
            self.paused = False

    def fail(self, error: BaseException) -> None:
        self.segments.fail(error)


class Candidate(Row):
    """A row that draws tokens until its segment or its response ends."""

    __slots__ = ("number", "uniforms", "writer")
    call: PendingProposal

    def __init__(self, call: PendingProposal, number: int, logits: Tensor) -> None:
        super().__init__(call, list(call.prefix), logits)
        self.number, self.writer = number, call.engine.writer(call.ask)
        self.uniforms = uniforms(call.ask.seed, call.ask.segment, call.ask.first + number, self.writer.most)

    @property
    def drawn(self) -> int:
        return len(self.writer.tokens)

    def push(self, token: int) -> None:
        """Add a token. -1 stands for invalid logits, which fail the call."""
        if token < 0:
            if not self.call.cancelled:
                self.call.abort(invalid_logits(self.writer.position))
            return
        self.tokens.append(token)
        self.call.account.add(decoded_tokens=1)
        self.writer.push(token)
        self._check_done()

    def end(self, entropy: float) -> None:
        self.writer.end(entropy=entropy)
        self._check_done()

    def _check_done(self) -> None:
        if self.writer.segment is not None:
            self.done = True
            self.call.segments.finish(self.number, self.writer.segment)


def _numpy(values: Tensor) -> NDArray[Any]:
    return values.cpu().numpy()


def _rows_of(logits: Tensor, members: Sequence[tuple[Candidate, int]]) -> Tensor:
    return logits if len(members) == len(logits) else logits[[i for _, i in members]]
