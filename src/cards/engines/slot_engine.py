"""The base of in-process engines: rows in cache slots, with continuous batching, whatever library runs the model."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from cards.boundaries import Boundary
from cards.engines.base import Ask, Engine
from cards.engines.ordered import OrderedQueue
from cards.engines.scheduler import PendingCall, PendingResult, Row, Scheduler, Tail
from cards.engines.slots import Outputs, Slots
from cards.engines.text import check_fits, check_ids, encode
from cards.errors import CardsError, check
from cards.events import Message, Prompt, Response, Segment
from cards.sampling import Sampling, invalid_logits, uniforms

Look = tuple[float | None, int | None]  # of a candidate: uncertainty about its next token, if its boundary asks, and the token


class SlotEngine(Engine):
    """An LM whose rows share the cache slots of a scheduler. Further rows wait for a free slot.

    A back end loads the model, calls `_start` with its slots, and computes with the outputs of its model in `_draw`,
    `_uncertainty`, `_fetch`, `_to_numpy` and `_logprobs`. All of these run in the worker thread.
    """

    has: ClassVar[frozenset[str]] = frozenset({"segments", "logits", "logprobs", "shaping"})
    scheduler: Scheduler
    tokenizer: Any  # a `Tokenizer`, or one of a library

    def _start(self, slots: Slots, budget: int = 1024) -> None:
        """Run rows in these slots, with at most `budget` tokens in a step."""
        self.scheduler = Scheduler(slots, self._look, self._consume, budget)
        self.parts = (self.scheduler,)
        self._logits: OrderedDict[tuple[int, ...], Outputs] = OrderedDict()  # [1, vocabulary] after recent sequences

    @abstractmethod
    def _draw(self, logits: Outputs, sampling: Sampling, u: Sequence[float]) -> Outputs:
        """Draw one token id per row by inverse CDF, with u in [0, 1): logits [rows, vocabulary] -> ids [rows].

        The id is -1 if the logits of the row contain NaN or +inf, or only -inf.
        """

    @abstractmethod
    def _uncertainty(self, boundary: Boundary, logits: Outputs) -> Outputs:
        """Return the boundary's uncertainty about each next token, [rows, vocabulary] -> [rows]."""

    def _fetch(self, results: Sequence[Outputs]) -> Sequence[Sequence[float]]:
        """Return results of `_uncertainty` and `_draw` as numbers of this process."""
        return results

    @abstractmethod
    def _to_numpy(self, logits: Outputs) -> NDArray[np.float32]:
        """Return the logits as an array that the caller can keep and change."""

    @abstractmethod
    def _editable(self, logits: Outputs) -> Outputs:
        """Return a copy of the logits in float32 or a wider type."""

    @abstractmethod
    def _logprobs(self, logits: Outputs, tokens: Sequence[int], temperature: float) -> NDArray[np.float64]:
        """Return the log-probability of one token per row at a temperature."""

    def encode(self, prompt: str | Sequence[Message]) -> Prompt:
        return check_fits(encode(self.tokenizer, prompt), self.name, self.context, self.vocab_size)

    def tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @property
    def rows_in_use(self) -> int:
        return len(self.scheduler.active)

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
        return cast("NDArray[np.float32]", await self._read(prompt, ids, last, self._to_numpy))

    async def logprobs(
        self, prompt: Prompt, response: Response, last: int | None = None, temperature: float = 1.0
    ) -> NDArray[np.float64]:
        ids = list(response.token_ids)
        last = len(ids) if last is None else last
        check(0 <= last <= len(ids), f"last must be between 0 and {len(ids)}, the length of the response, got {last}.")
        if not last:
            return np.zeros(0)
        drawn = ids[len(ids) - last :]

        def reduce(logits: Outputs) -> NDArray[np.float64]:
            return self._logprobs(logits, drawn, temperature)

        return cast("NDArray[np.float64]", await self._read(prompt, [*prompt.token_ids, *ids[:-1]], last, reduce))

    async def _read(self, prompt: Prompt, tokens: list[int], last: int, reduce: Callable[[Outputs], NDArray[Any]]) -> Any:
        check(1 <= last <= len(tokens), f"last must be between 1 and {len(tokens)}, the length of the text, got {last}.")
        check_ids(tokens, self.name, self.vocab_size)
        pending = PendingResult()

        def finish(logits: Outputs) -> None:
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

    def forget(self) -> None:
        super().forget()
        self.scheduler.do(self._logits.clear)

    # The methods below run in the worker thread.

    def _begin(self, proposal: PendingProposal) -> Sequence[Row]:
        """Return the candidates if the logits after their prefix are known, otherwise one row that reads the prefix."""
        logits = self._logits.get(tuple(proposal.prefix))
        if logits is None or not self.scheduler.slots.holds(proposal.prefix):
            return [Row(proposal, proposal.prefix)]
        return proposal.candidates(logits)

    def _look(self, rows: Sequence[Row], logits: Outputs) -> list[Look]:
        """Return what the candidates need from the logits: one uncertainty, and the token that follows unless it ends them.

        All of it is computed where the logits are, and fetched together, because each fetch waits for the device.
        """
        drawing = [(row, i) for i, row in enumerate(rows) if isinstance(row, Candidate)]
        logits = self._shaped(logits, drawing)
        drawing = [(candidate, i) for candidate, i in drawing if not candidate.call.cancelled]
        by_boundary: dict[Boundary, list[tuple[Candidate, int]]] = {}
        by_sampling: dict[Sampling, list[tuple[Candidate, int]]] = {}
        for candidate, i in drawing:
            boundary = candidate.call.ask.boundary
            if boundary.reads_logits and candidate.drawn >= boundary.minimum:
                by_boundary.setdefault(boundary, []).append((candidate, i))
            by_sampling.setdefault(candidate.call.ask.sampling, []).append((candidate, i))
        asked = [self._uncertainty(boundary, self._rows_of(logits, members)) for boundary, members in by_boundary.items()]
        for sampling, members in by_sampling.items():
            u = [c.uniforms[c.drawn] for c, _ in members]
            allowed = self._allowed(self._rows_of(logits, members), [candidate for candidate, _ in members])
            asked.append(self._draw(allowed, sampling, u))
        found: list[list[Any]] = [[None, None] for _ in rows]
        columns = [0] * len(by_boundary) + [1] * len(by_sampling)
        groups = [*by_boundary.values(), *by_sampling.values()]
        for column, members, values in zip(columns, groups, self._fetch(asked), strict=True):
            for (_, i), value in zip(members, values, strict=True):
                found[i][column] = value
        return [(value, None if token is None else int(token)) for value, token in found]

    def _consume(self, rows: Sequence[Row], logits: Outputs, looks: Sequence[Look]) -> list[Row]:
        admitted: list[Row] = []
        for i, (row, (value, token)) in enumerate(zip(rows, looks, strict=True)):
            if not isinstance(row, Candidate):
                row.done = True
                kept = self._remember(row.tokens, logits[i : i + 1])
                admitted += row.call.candidates(kept)  # type: ignore[attr-defined]
            elif value is not None and row.call.ask.boundary.ends_before(value):
                self._remember(row.tokens, logits[i : i + 1])
                row.end(value)
            elif token is not None:
                row.push(token)
        for call in {row.call for row in rows if isinstance(row, Candidate) and row.done}:
            call.deliver()
        return admitted

    def _allowed(self, logits: Outputs, candidates: Sequence[Candidate]) -> Outputs:
        """Return the logits [rows, vocabulary] with -inf for the tokens that the model excludes."""
        if not self.exclusions:
            return logits
        logits = self._editable(logits)
        for i, candidate in enumerate(candidates):
            logits[i, self.exclusions.after(candidate.tokens, candidate.writer.position)] = -np.inf
        return logits

    def _shaped(self, logits: Outputs, drawing: Sequence[tuple[Candidate, int]]) -> Outputs:
        """Return the logits [rows, vocabulary] with each candidate's row shaped. If that is impossible, its call fails."""
        shaping = [(candidate, shaper, i) for candidate, i in drawing if (shaper := candidate.writer.shaper) is not None]
        logits = self._editable(logits) if shaping else logits
        for candidate, shaper, i in shaping:
            try:
                shaper.edit(logits[i], candidate.writer.response_ids())
            except CardsError as error:
                candidate.call.abort(error)
        return logits

    def _rows_of(self, logits: Outputs, members: Sequence[tuple[Candidate, int]]) -> Outputs:
        """Return the logits of these candidates, each with its row."""
        return logits if len(members) == len(logits) else self._select(logits, [i for _, i in members])

    def _select(self, logits: Outputs, rows: list[int]) -> Outputs:
        """Return rows of the logits, for `_draw` and `_uncertainty`."""
        return logits[rows]

    def _remember(self, tokens: Sequence[int], logits: Outputs) -> Outputs:
        """Keep a copy of the logits after a sequence, and return it."""
        kept = self._logits[tuple(tokens)] = self.scheduler.slots.cache.join([logits])
        while len(self._logits) > 4 * self.rows:
            self._logits.popitem(last=False)
        return kept


class PendingProposal(PendingCall):
    """A call of `propose`, with its candidates and the queue that returns them in order."""

    def __init__(self, ask: Ask, engine: SlotEngine) -> None:
        super().__init__()
        self.ask, self.engine = ask, engine
        self.prefix = [*ask.prompt.token_ids, *ask.response.token_ids]
        self.segments = OrderedQueue(ask.n)

    def candidates(self, logits: Outputs) -> list[Row]:
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

    def __init__(self, call: PendingProposal, number: int, logits: Outputs) -> None:
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
