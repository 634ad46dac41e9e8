"""The service behind the endpoints: models, methods, limits, and the validation of requests."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any
from weakref import WeakSet

import cards
from cards.decoder import Decoder
from cards.engines.base import Engine
from cards.errors import PromptError, check
from cards.events import Message, Prompt
from cards.methods.base import Method
from cards.methods.vanilla import Vanilla
from cards.rewards.base import Reward
from cards.sampling import Sampling, seed_at
from cards.serve.errors import TOO_LONG, ApiError, api_error, ending, public
from cards.serve.gate import Gate
from cards.serve.generation import Choice, Generation, GenerationRequest, PromptText
from cards.serve.methods import OfferedMethods
from cards.serve.metrics import Metrics
from cards.serve.options import ServerOptions
from cards.serve.readiness import Readiness
from cards.serve.schemas import RANDOM_SEED, Body
from cards.serve.tracing import Tracing
from cards.serve.weights import ClientWeights
from cards.settings import spec_of

TOKENIZING_THREADS = 2
WEIGHTS = 64  # sets of weights whose methods are kept


@dataclass(frozen=True, slots=True)
class Entry:
    """A model, a reward and a method under a name and aliases. Entries can share models.

    `max_tokens` is the default of requests (None: that of the server). `weights` are those that clients can set.
    """

    name: str
    engine: Engine
    reward: Reward | None
    method: Method
    aliases: tuple[str, ...] = ()
    max_tokens: int | None = None
    weights: ClientWeights | None = None


@dataclass(slots=True)
class Shared:
    """The parts that all services of a server share. `draining` says that the server is shutting down."""

    options: ServerOptions
    tracing: Tracing
    metrics: Metrics
    tokenizing: ThreadPoolExecutor
    tokenizing_gate: Gate
    draining: bool = False


class Service:
    """One engine, one reward and one method, served to clients under a name.

    Raises MismatchError if the server's own method cannot run on them, and PromptError if the chat template of the engine
    cannot use the defaults for chats.
    """

    def __init__(self, entry: Entry, shared: Shared, gate: Gate, readiness: Readiness) -> None:
        self.entry, self.shared, self.gate, self.readiness = entry, shared, gate, readiness
        self.name, self.engine, self.reward = entry.name, entry.engine, entry.reward
        engine, reward, method = entry.engine, entry.reward, entry.method
        options = self.options = shared.options
        self.tracing, self.metrics = shared.tracing, shared.metrics
        options.check_template(engine.chats)
        if options.needs_template:
            engine.encode(options.chat([Message(role="user", content="Hi")]))
        about = [cards.__version__, engine.name, reward and reward.name, spec_of(method), options.on_reward_failure]
        self.fingerprint = "fp_" + hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]
        self.reward_name = public(reward.name) if reward else None
        if entry.weights is not None:
            self.reward_name = entry.weights.shown
        self.methods = OfferedMethods(engine, reward, method, options.limit_setting)
        self._weighted = lru_cache(WEIGHTS)(self._weigh)
        self.generations: WeakSet[Generation] = WeakSet()  # in progress
        self.max_characters = _max_characters(engine, options.limit_prompt)

    def decoder(self, method: str | None, settings: Mapping[str, Any], weights: Mapping[str, float] | None = None) -> Decoder:
        """Return a decoder on the server's models. Raises UnknownNameError or SettingError."""
        chosen = self.methods.make(method, settings)
        if not weights:
            return Decoder(self.engine, self.reward, chosen)
        reward, methods = self._weighted(tuple(sorted(weights.items())))
        decoder = Decoder(self.engine, reward, methods.make(method, settings))
        assert self.reward is not None  # it has the weights
        # CARDS follows the rewards where no target is known, but the operator has chosen one
        followed = _gains(decoder.method) == _gains(chosen.resolved(self.reward))
        check(followed, "The target reward does not follow these weights: set target with them.")
        return decoder

    def _weigh(self, weights: tuple[tuple[str, float], ...]) -> tuple[Reward, OfferedMethods]:
        """Return the reward with a client's weights, and the methods with target rewards that follow them."""
        check(self.entry.weights is not None, "weights cannot be set on this server. Leave them out.")
        assert self.entry.weights is not None
        reward, method = self.entry.weights.apply(self.entry.method, dict(weights))
        return reward, OfferedMethods(self.engine, reward, method, self.options.limit_setting)

    def generation(self, request: GenerationRequest) -> Generation:
        generation = Generation(request, self._encoded, self.gate, self.readiness, self.tracing)
        self.generations.add(generation)
        return generation

    def end(self) -> None:
        """End all requests with an error, because the server ends."""
        for generation in self.generations:
            generation.stop(ending())

    def validate(self, body: Body, arrived: float) -> GenerationRequest:
        """Check a request. Its prompts are not encoded yet. Raises ApiError or CardsError."""
        self._check_open()
        ignored = body.check_fields(self.options.unknown_fields == "ignore")
        decoder = self.decoder(body.cards.method, _settings(body), body.cards.weights)
        self._check_logprobs(body)
        limits = self.options
        default = min(self.entry.max_tokens or limits.max_tokens, limits.limit_tokens)
        tokens = default if body.tokens is None else body.tokens
        if tokens > limits.limit_tokens:
            why = f"max_tokens must be at most {limits.limit_tokens} on this server, got {tokens}."
            raise ApiError(400, why, param="max_tokens")
        prompts = [limits.chat(given) if isinstance(given, list) else given for given in body.prompts]
        for given in prompts:
            self.check_length(given)
        shaping = body.shaping
        for engine in decoder.proposers:
            engine.check_shaping(shaping)
        uses_reward = "reward" in decoder.method.needed
        return GenerationRequest(
            decoder=decoder,
            plain=self._plain(decoder.method) if uses_reward and limits.on_reward_failure == "plain" else None,
            prompts=prompts,
            choices=self._choices(body),
            max_tokens=tokens,
            stop=body.stops,
            shaping=shaping,
            deadline=arrived + min(limits.deadline, body.cards.deadline or limits.deadline),
            trace=body.cards.trace,
            inspect=body.cards.inspect,
            logprobs=body.alternatives,
            stream=bool(body.stream),
            echo=body.wants_echo,
            ignored=tuple(ignored),
            weights=None if self.entry.weights is None else self.entry.weights.of(decoder.reward),
        )

    def _check_open(self) -> None:
        if self.shared.draining:
            raise ApiError(503, "The server is shutting down. Retry later.", code="ending", retry_after=1)

    def _choices(self, body: Body) -> list[Choice]:
        """Return `n` choices for each prompt. Choice number i, counted over all prompts, has the seed `seed_at(seed, i)`."""
        if (count := (body.n or 1) * len(body.prompts)) > self.gate.max_running:
            why = f"A request may have at most {self.gate.max_running} responses (n for each prompt), got {count}."
            raise ApiError(400, why, param="n")
        seed = secrets.randbits(32) if body.seed is None or body.seed == RANDOM_SEED else body.seed
        return [Choice(i, seed_at(seed, i)) for i in range(count)]

    def _check_logprobs(self, body: Body) -> None:
        """Raise ApiError if the engine lacks the capability for the requested log-probabilities."""
        if body.alternatives is None:
            return
        if "logprobs" not in self.engine.has:
            why = f"Model {self.name!r} has no log-probabilities. Leave logprobs out."
            raise ApiError(400, why, param="logprobs", code="unsupported")
        if (body.alternatives or body.wants_echo) and "logits" not in self.engine.has:
            why = f"Model {self.name!r} has log-probabilities of the response only, without alternatives."
            raise ApiError(400, why, param="logprobs", code="unsupported")

    def check_length(self, given: PromptText) -> None:
        """Raise ApiError if the prompt has too many characters to be worth tokenizing."""
        if isinstance(given, tuple):
            return
        length = len(given) if isinstance(given, str) else sum(len(message["content"]) for message in given)
        if self.max_characters is not None and length > self.max_characters:
            why = f"The prompt has {length} characters, but at most {self.max_characters} fit into the context of the model."
            raise ApiError(400, f"{why} Shorten it.", param=_param(given), code=TOO_LONG)

    async def _encoded(self, given: PromptText) -> Prompt:
        """Tokenize a prompt in a thread. Raises ApiError."""
        from jinja2 import TemplateError

        try:
            encode: Callable[[Any], Prompt] = self.engine.prompt_of if isinstance(given, tuple) else self.engine.encode
            prompt = await asyncio.get_running_loop().run_in_executor(self.shared.tokenizing, encode, given)
        except PromptError as error:
            converted = api_error(error)
            converted.param = _param(given)
            raise converted from error
        except TemplateError as error:
            raise ApiError(400, f"The model's chat template rejects these messages: {error}.", param="messages") from error
        limit = self.options.limit_prompt
        if limit is not None and (length := len(prompt.token_ids)) > limit:
            why = f"The prompt must have at most {limit} tokens on this server, got {length}."
            raise ApiError(400, why, param=_param(given), code=TOO_LONG)
        return prompt

    def _plain(self, method: Method) -> Decoder:
        """Return a decoder that samples plainly, with the sampling settings of the method."""
        sampling = getattr(method.nest[-1], "sampling", None)
        return Decoder(self.engine, None, Vanilla(**asdict(sampling)) if isinstance(sampling, Sampling) else Vanilla())


def _gains(method: Method) -> list[float | None]:
    return [getattr(one, "gain", None) for one in method.nest]


def _max_characters(engine: Engine, limit_prompt: int | None) -> int | None:
    """Return how many characters a prompt can have if each token is the longest one; None for an unknown vocabulary."""
    vocabulary: dict[str, int] = getattr(engine.tokenizer, "get_vocab", dict)()
    return max(map(len, vocabulary)) * min(engine.context, limit_prompt or engine.context) if vocabulary else None


def _param(given: PromptText) -> str:
    return "messages" if isinstance(given, list) else "prompt"


def _settings(body: Body) -> dict[str, Any]:
    """Return the settings of the method, with those of them that are given as fields of the request."""
    given = {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k, "min_p": body.min_p}
    named = {key: None if key == "top_k" and value < 1 else value for key, value in given.items() if value is not None}
    if twice := named.keys() & body.cards.settings.keys():
        why = f"{min(twice)} is given twice. Remove it from the request or from cards.settings."
        raise ApiError(400, why, param=min(twice))
    return body.cards.settings | named
