"""Generation of the responses to one API request, from admission to the release of its resources."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

from cards.backends.http.client import RejectedRequestError
from cards.decoder import Decoder
from cards.errors import CardsError, RewardError, UnavailableError
from cards.events import Accepted, Done, Event, Fallback, Message, Prompt, Response, Result
from cards.serve.errors import ApiError
from cards.serve.gate import Gate
from cards.serve.inspection import Inspection, inspect
from cards.serve.logprobs import TokenLogprob, logprobs_of
from cards.serve.readiness import Readiness
from cards.serve.tracing import Tracing
from cards.shaping import Shaping
from cards.streams import AsyncStream
from cards.usage import Usage, track_usage

PromptText = str | list[Message] | tuple[int, ...]  # raw text, messages or token ids
NOT_ENCODED = Prompt("")


class RequestUsage(Usage):
    """The usage of a response, and how many tokens the cache held when the LM first read its prompt."""

    first_cached: int | None = None

    def add(self, **amounts: float) -> None:
        if self.first_cached is None and "lm_cached_tokens" in amounts:
            self.first_cached = int(amounts["lm_cached_tokens"])
        super().add(**amounts)


@dataclass(slots=True)
class Choice:
    """One response of a request. `unaligned` is the error for which plain sampling replaced the method, or None."""

    index: int
    seed: int
    prompt: Prompt = NOT_ENCODED
    usage: RequestUsage = field(default_factory=RequestUsage)
    emitted: str = ""  # text of the events so far
    stream: AsyncStream | None = None  # has the response so far
    result: Result | None = None
    logprobs: list[TokenLogprob] | None = None
    inspection: Inspection | None = None
    unaligned: Exception | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A validated request.

    `choices` has the same number of responses for each of `prompts`, in order. `deadline` is a value of `time.monotonic`;
    `plain` is the decoder to use if the reward fails. `inspect` asks for an
    Inspection of each response. `logprobs` is the number of alternatives to each token; with `echo` the
    prompt precedes the response. `max_tokens` 0 means that nothing is decoded. `ignored` names fields without effect,
    `weights` those of the parts of the reward, if clients can set them.
    """

    decoder: Decoder
    plain: Decoder | None
    prompts: Sequence[PromptText]
    choices: Sequence[Choice]
    max_tokens: int
    stop: tuple[str, ...]
    shaping: Shaping
    deadline: float
    trace: bool
    inspect: bool
    logprobs: int | None
    stream: bool
    echo: bool = False
    ignored: tuple[str, ...] = ()
    weights: Mapping[str, float] | None = None


ChoiceEvent = tuple[Choice, Event]


class Generation:
    """The concurrent decoding of all choices of a request. Call `start`, iterate `events`, and always call `aclose`.

    `encode` tokenizes a prompt. Prompts are tokenized after admission, so that the gate limits this work, too.
    """

    def __init__(
        self,
        request: GenerationRequest,
        encode: Callable[[PromptText], Awaitable[Prompt]],
        gate: Gate,
        readiness: Readiness,
        tracing: Tracing,
    ) -> None:
        self.request, self.encode, self.gate, self.readiness, self.tracing = request, encode, gate, readiness, tracing
        self.queue_seconds = 0.0
        self.first_text_at: float | None = None  # a value of `time.monotonic`
        self._queue: asyncio.Queue[ChoiceEvent | Exception] = asyncio.Queue()
        self._failure: Exception | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def tokens(self) -> tuple[int, int]:
        """The tokens of prompts, each counted once, and of responses; those drawn so far for a response that did not end."""
        choices = self.request.choices
        prompts = {id(choice.prompt): len(choice.prompt.token_ids) for choice in choices}
        return sum(prompts.values()), sum(
            choice.usage.lm_decoded_tokens if choice.result is None else len(choice.result.token_ids) for choice in choices
        )

    async def start(self, patience: float | None = None) -> None:
        """Wait until decoding starts, at most `patience` seconds. Raises ApiError or CardsError if it cannot start."""
        self._tasks = [asyncio.create_task(self._begin())]
        await asyncio.wait(self._tasks, timeout=patience)
        if self._failure is not None:
            raise self._failure

    def stop(self, error: ApiError) -> None:
        """End the request with this error."""
        for task in self._tasks:
            task.cancel()
        self._fail(error)

    async def events(self, patience: float | None = None) -> AsyncIterator[ChoiceEvent | None]:
        """Yield the accepted segments and `Done` of every choice, and all other events if the request has a trace.

        Yield None whenever nothing happens for `patience` seconds.
        """
        running = len(self.request.choices)
        while running:
            try:
                async with asyncio.timeout(patience):
                    item = await self._queue.get()
            except TimeoutError:
                yield None
                continue
            if isinstance(item, Exception):
                raise item
            yield item
            running -= isinstance(item[1], Done)

    async def aclose(self) -> None:
        """Cancel unfinished choices and free their cache slots."""
        unfinished = [task for task in self._tasks if task.cancel()]
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if unfinished:
            await self.request.decoder.engine.settle()
        for choice in self.request.choices:
            if choice.result is None:  # the client keeps none of its tokens
                choice.usage.lm_wasted_tokens = choice.usage.lm_decoded_tokens + choice.usage.draft_kept_tokens

    async def _begin(self) -> None:
        """Wait for admission, encode the prompts, and start to decode."""
        choices, start = self.request.choices, time.monotonic()
        try:
            async with asyncio.timeout(self.request.deadline - start):
                try:
                    await self.gate.enter(len(choices))
                finally:
                    self.queue_seconds = time.monotonic() - start
                try:
                    await self._encode()
                except BaseException:
                    self.gate.leave(len(choices))
                    raise
        except TimeoutError:
            why = "The deadline passed before decoding started. Retry later."
            self._fail(ApiError(429, why, code="deadline", retry_after=self.gate.retry_after))
        except Exception as error:
            self._fail(error)
        else:
            tasks = [asyncio.create_task(self._generate(choice)) for choice in choices]
            for task in tasks:  # a task that is cancelled before it starts never runs its own cleanup
                task.add_done_callback(lambda _: self.gate.leave())
            self._tasks += tasks

    async def _encode(self) -> None:
        prompts, choices = self.request.prompts, self.request.choices
        n = len(choices) // len(prompts)
        for i, given in enumerate(prompts):
            prompt = await self.encode(given)
            for choice in choices[i * n : (i + 1) * n]:
                choice.prompt = prompt

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._queue.put_nowait(error)

    async def _generate(self, choice: Choice) -> None:
        decoder, plain = self.request.decoder, self.request.plain
        try:
            with self.tracing.span(decoder.method.name, choice.usage):
                try:
                    await self._decode(choice, decoder)
                except (RewardError, UnavailableError, RejectedRequestError) as error:
                    self.readiness.report_failure()
                    if plain is None or (self.request.stream and choice.emitted):  # sent text cannot be withdrawn
                        raise
                    choice.unaligned = error
                    await self._decode(choice, plain)
        except Exception as error:
            self._fail(error)

    async def _decode(self, choice: Choice, decoder: Decoder) -> None:
        request, choice.emitted = self.request, ""
        if not request.max_tokens:
            nothing = Result("", (), (), None, "length", choice.usage, choice.seed, decoder.method.name)
            await self._finish(choice, nothing)
            self._queue.put_nowait((choice, Done(nothing)))
            return
        left = max(1e-3, request.deadline - time.monotonic())
        choice.stream = decoder.astream(
            choice.prompt,
            max_tokens=request.max_tokens,
            seed=choice.seed,
            stop=request.stop,
            shaping=request.shaping,
            deadline=left,
            trace=request.trace,
            usage=choice.usage,
        )
        async with aclosing(choice.stream) as events:
            async for event in events:
                match event:
                    case Done(result):
                        await self._finish(choice, result)
                    case Accepted(segment=segment) | Fallback(segment=segment):
                        choice.emitted += segment.text
                        self.first_text_at = self.first_text_at or time.monotonic()
                    case _ if not request.trace:
                        continue
                self._queue.put_nowait((choice, event))

    async def _finish(self, choice: Choice, result: Result) -> None:
        """Set the result, and the log-probabilities and the inspection if they are requested."""
        request, response = self.request, Response(result.text, result.token_ids)
        if request.logprobs is not None:
            with track_usage(choice.usage):
                choice.logprobs = await logprobs_of(
                    request.decoder.engine, choice.prompt, response, request.logprobs, request.echo
                )
        if request.inspect:
            with suppress(TimeoutError, CardsError):  # the response is complete without it
                async with asyncio.timeout(request.deadline - time.monotonic()):
                    choice.inspection = await inspect(request.decoder, choice.prompt, response, result.reward)
        choice.result = result
