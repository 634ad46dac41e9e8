"""The Decoder: a model, a reward and a method behind one call, as a response, stream or batch, sync or async."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from cards.background import background
from cards.engines.base import Engine
from cards.errors import (
    BatchError,
    CardsError,
    MismatchError,
    PromptError,
    PromptTooLongError,
    RewardError,
    UnreachableTargetWarning,
    check,
)
from cards.events import Done, Event, Fold, Message, Prompt, Result
from cards.grammar import Grammar
from cards.methods.base import Method, Request
from cards.methods.thinking import think_first
from cards.parts import Composite
from cards.progress import run_concurrently
from cards.prompts import Chat
from cards.registry import load_engine, load_reward, method_classes, read_spec, with_models
from cards.rewards.base import Reward
from cards.rewards.combine import WeightedSum
from cards.rewards.function import FunctionReward, Scorer
from cards.rewards.thinking import thinking_rewards
from cards.sampling import seed_at
from cards.settings import settings_of
from cards.shaping import NO_SHAPING, Shaping
from cards.streams import AsyncStream, Stream
from cards.usage import Usage, track_usage

PromptLike = str | Sequence[Message]
HIGH_FALLBACK = 0.2


class Decoder(Composite):
    """Decodes prompts from `model` with `method`, guided by `reward`.

    model: an Engine or a name (`tiny`, a folder, a Hugging Face name). reward: a Reward, a name, a function of
    (prompt, response), or None. method: a Method, or text (`best-of-n:n=4`). A prompt is raw text, which is used unchanged; a
    list of messages, which the model's chat template renders; or a Prompt with tokens of this model.
    Raises MismatchError if the engine or the reward lacks a capability that the method needs.
    """

    def __init__(
        self,
        model: str | Engine,
        reward: str | Reward | Scorer | None = None,
        method: str | Method = "cards",
    ) -> None:
        self.engine = load_engine(model) if isinstance(model, str) else model
        self.reward = _as_reward(reward)
        chosen = with_models(read_spec(method) if isinstance(method, str) else method, self.engine)
        self.method = chosen if self.reward is None else chosen.resolved(self.reward)
        self.parts = [model for model in (self.engine, self.reward, *self.method.models) if model is not None]
        check_match(self.method, self.engine, self.reward)
        self.thinking = next(thinking_rewards(self._rewards), None)

    def with_weights(self, weights: Mapping[str, float]) -> Decoder:
        """Return a decoder on the same models whose reward, a WeightedSum, has these weights, by the names of its parts.

        The target reward of the method and of the reward follow the weights (see `PartStatistics.target`).
        Raises MismatchError for another reward, and UnknownNameError or SettingError as `WeightedSum.with_weights`.
        """
        if not isinstance(self.reward, WeightedSum):
            raise MismatchError(f"Only a sum of rewards has weights, got the reward {self.reward and self.reward.name!r}.")
        return reweighted(self, self.reward, self.reward.with_weights(weights))

    def __call__(self, prompt: PromptLike | Prompt, **options: Any) -> Result:
        """Return the response to a prompt. Options: see `astream`."""
        return background().run(self.agenerate(prompt, **options))

    def stream(self, prompt: PromptLike | Prompt, **options: Any) -> Stream:
        """Return a stream of events that ends with `Done`. Closing it frees the cache slots. Options: see `astream`."""
        return Stream(self.astream(prompt, **options))

    def batch(
        self, prompts: Sequence[PromptLike | Prompt], *, seed: int = 0, progress: bool | None = None, **options: Any
    ) -> list[Result]:
        """Return the responses to many prompts, decoded concurrently. Options: see `abatch`."""
        return background().run(self.abatch(prompts, seed=seed, progress=progress, **options))

    async def agenerate(self, prompt: PromptLike | Prompt, **options: Any) -> Result:
        """Async version of calling the decoder."""
        async with aclosing(self.astream(prompt, **options)) as events:
            async for _ in events:
                pass
        return events.result

    def astream(
        self,
        prompt: PromptLike | Prompt,
        *,
        max_tokens: int = 128,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        deadline: float | None = None,
        trace: bool = False,
        usage: Usage | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        grammar: Grammar | None = None,
        shaping: Shaping = NO_SHAPING,
    ) -> AsyncStream:
        """Async version of `stream`.

        max_tokens: maximum length of the response. seed: the same seed gives the same text. stop: the response ends before the
        first of these strings. deadline: seconds after which the response so far is returned. trace: keep rejected candidates.
        usage: add the cost to this record, which several responses can share. chat_template_kwargs: further variables for the
        chat template of a prompt of messages, such as `{"enable_thinking": False}`. grammar: the form of the response; only
        one that ends by its length can break off within it. shaping: penalties and biases of the logits.
        Raises PromptError, SettingError or MismatchError immediately, and RewardError when a score fails.
        """
        check(max_tokens >= 1, f"max_tokens must be at least 1, got {max_tokens}.")
        check(deadline is None or deadline > 0, f"deadline must be a positive number of seconds, got {deadline}.")
        check(isinstance(seed, int) and seed >= 0, f"seed must be a non-negative integer, got {seed!r}.")
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        check(all(stop), f"stop must not contain an empty string, got {stop!r}.")
        if chat_template_kwargs:
            if isinstance(prompt, str | Prompt):
                raise PromptError("chat_template_kwargs need a prompt of messages, which the chat template renders.")
            prompt = Chat(prompt, chat_template_kwargs)
        if grammar is not None:
            check(shaping.grammar is None, "grammar and shaping both have a grammar: give one of them.")
            shaping = replace(shaping, grammar=grammar)
        for engine in self.proposers:
            engine.check_shaping(shaping)
        encoded = prompt if isinstance(prompt, Prompt) else self.engine.encode(prompt)
        if self.thinking is not None:
            self.thinking.markers(encoded)
        request = Request(encoded, max_tokens, seed, stop, trace, self._room(encoded), shaping)
        fold = Fold(usage or Usage(), seed, self.method.name)
        return AsyncStream(self._events(request, fold, deadline), fold)

    async def _events(self, request: Request, fold: Fold, deadline: float | None) -> AsyncGenerator[Event, None]:
        fold.start = time.perf_counter()
        events: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()
        task = asyncio.create_task(self._run(request, fold.usage, events))  # the usage ticket lives in the context of this task
        ended_early = False
        try:
            while True:
                left = None if deadline is None else max(0.0, fold.start + deadline - time.perf_counter())
                try:
                    async with asyncio.timeout(left):  # wait_for of Python 3.11 loses a cancellation if an event has arrived
                        event = await events.get()
                except TimeoutError:
                    ended_early = True
                    break
                if event is None:
                    break
                if isinstance(event, BaseException):
                    if isinstance(event, CardsError):
                        event.partial = fold.result()
                    raise event
                fold.add(event)
                yield event
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.settle()
            fold.usage.seconds = time.perf_counter() - fold.start
        result = fold.result("deadline" if ended_early else None)
        if ended_early:
            result = with_held_text(result)
        warn_if_unreachable(result, self.method)
        yield Done(result)

    async def abatch(
        self,
        prompts: Sequence[PromptLike | Prompt],
        *,
        seed: int = 0,
        progress: bool | None = None,
        concurrency: int | None = None,
        **options: Any,
    ) -> list[Result]:
        """Async version of `batch`. Prompt number i has the seed `cards.sampling.seed_at(seed, i)`, which its result names.

        So a prompt can be repeated alone, and batches with other seeds share no random numbers with this one.

        concurrency: maximum number of requests in flight; None means the engine's number of sequences.
        progress: whether to show a progress bar; None shows it on terminals.
        Raises BatchError if prompts fail, after the other prompts are complete.
        """
        check(concurrency is None or concurrency >= 1, f"concurrency must be at least 1, got {concurrency}.")
        results: list[Result | None] = [None] * len(prompts)
        errors: dict[int, Exception] = {}

        async def one(i: int) -> None:
            results[i] = await self.agenerate(prompts[i], seed=seed_at(seed, i), **options)

        await run_concurrently(range(len(prompts)), one, errors.__setitem__, concurrency or self.engine.rows, progress)
        if errors:
            raise BatchError(results, errors)
        return [result for result in results if result is not None]

    @property
    def _rewards(self) -> list[Reward]:
        """The rewards that the method uses."""
        models = (self.reward if "reward" in self.method.needed else None, *self.method.models)
        return [model for model in models if isinstance(model, Reward)]

    @property
    def proposers(self) -> list[Engine]:
        """The engines whose proposals a request shapes."""
        return [self.engine, *(model for model in self.method.models if isinstance(model, Engine))]

    def _room(self, prompt: Prompt) -> int | None:
        """Return how many response tokens the contexts of the rewards allow. The engine checks its own context."""
        rooms = []
        for reward in self._rewards:
            if reward.context is None:
                continue
            rooms.append(reward.context - len(prompt.token_ids))
            if rooms[-1] < 1:
                raise PromptTooLongError(
                    f"The prompt has {len(prompt.token_ids)} tokens, but reward {reward.name!r} reads at most "
                    f"{reward.context} with the response: shorten the prompt or load the reward with a larger context."
                )
        return min(rooms, default=None)

    async def _run(self, request: Request, usage: Usage, events: asyncio.Queue[Event | BaseException | None]) -> None:
        self.engine.requests += 1
        with track_usage(usage):
            try:
                if request.shaping.grammar is not None:  # the first grammar of a tokenizer takes seconds
                    await asyncio.to_thread(self.engine.shaper, request.shaping, request.prompt)
                async with aclosing(self._method_events(request)) as stream:
                    async for event in stream:
                        events.put_nowait(event)
                events.put_nowait(None)
            except asyncio.CancelledError:  # the stream was closed, or an engine or a reward cancelled itself
                events.put_nowait(
                    RewardError(f"The engine or the reward of method {self.method.name!r} cancelled its own call.")
                )
                raise
            except Exception as error:
                events.put_nowait(error)
            finally:
                self.engine.requests -= 1

    def _method_events(self, request: Request) -> AsyncGenerator[Event, None]:
        thinking = self.thinking
        if thinking is None or (self.method.whole if thinking.skip is None else not thinking.skip):
            return self.method.stream(request, self.engine, self.reward)
        return think_first(self.method, request, self.engine, self.reward, thinking.markers(request.prompt))


def check_match(method: Method, engine: Engine, reward: Reward | None) -> None:
    """Raise MismatchError, with a list of methods that work, if a capability that the method needs is missing."""
    has = engine.has | ({"reward"} if reward is not None else set())
    if missing := method.needed - has:
        fitting = sorted(name for name, cls in method_classes().items() if cls.needs <= has)
        raise MismatchError(
            f"Method {method.name!r} needs {', '.join(sorted(missing))}, which engine {engine.name!r}"
            f"{'' if reward is not None else ' without a reward'} does not provide. Methods that work: {', '.join(fitting)}."
        )


def reweighted(decoder: Decoder, before: WeightedSum, after: WeightedSum) -> Decoder:
    """Return the decoder with another sum of its rewards. The targets of its method follow the weights. Raises SettingError."""
    method = with_targets(decoder.method, lambda target: before.follow(after.weights, target))
    return Decoder(decoder.engine, after, method)


def with_targets(method: Method, change: Callable[[float], float | None]) -> Method:
    """Return the method with changed target rewards, also those of its inner methods."""
    values: dict[str, Any] = {}
    for name in settings_of(method):
        value = getattr(method, name)
        if isinstance(value, Method):
            values[name] = with_targets(value, change)
        elif name == "target" and value is not None:
            values[name] = change(value)
    return replace(method, **values) if values else method  # type: ignore[type-var]


def with_held_text(result: Result) -> Result:
    """Return the result with the tail that is held back because it may start a stop string."""
    if not result.segments:
        return result
    *before, last = result.segments
    last = replace(last, text=last.text + last.held, held="")
    return replace(result, text=result.text + result.segments[-1].held, segments=(*before, last))


def warn_if_unreachable(result: Result, method: Method) -> None:
    """Warn if so many segments are fallbacks that the model probably cannot reach the target reward."""
    tested = any(segment.threshold is not None for segment in result.segments)  # against a target reward
    if tested and (text := unreachable(result.usage, method)):
        warnings.warn(text, UnreachableTargetWarning, stacklevel=2)


def unreachable(usage: Usage, method: Method) -> str:
    """Return the warning for so many fallbacks that the target reward is probably out of reach; empty if there are fewer."""
    rate = usage.fallback_rate
    if rate is None or rate <= HIGH_FALLBACK or not method.remedy:
        return ""
    return (
        f"{rate:.0%} of the segments are fallbacks because no candidate passed: this model probably cannot reach the "
        f"target reward, and the method acts as best-of-n for each segment. {method.remedy}"
    )


def _as_reward(reward: str | Reward | Scorer | None) -> Reward | None:
    if isinstance(reward, str):
        return load_reward(reward)
    return reward if reward is None or isinstance(reward, Reward) else FunctionReward(reward)
