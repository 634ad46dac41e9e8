"""An engine for OpenAI-compatible servers, which streams completions and closes each stream at the end of its segment."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any
from uuid import uuid4

from cards.backends.http.client import Client, RejectedRequestError
from cards.backends.http.served import ModelFiles, ServedModel
from cards.boundaries import Boundary, Entropy
from cards.engines.ask import Ask
from cards.engines.base import Engine
from cards.engines.detokenizer import UNFINISHED
from cards.engines.interval import entropy_interval
from cards.engines.ordered import in_order
from cards.engines.text import check_fits, encode, with_template
from cards.engines.writer import Writer
from cards.errors import MismatchError, PromptError, PromptTooLongError, UnavailableError
from cards.events import Message, Prompt, Segment
from cards.fingerprint import fingerprint
from cards.prompts import check_text
from cards.sampling import uniforms
from cards.usage import current_account


class StreamVocabulary:
    """Token ids for servers that return none. Each distinct streamed text gets the next free id."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._texts: list[str] = []
        self._lock = Lock()

    def id_of(self, text: str) -> int:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # JSON can contain half of a character
        with self._lock:
            if text not in self._ids:
                self._ids[text] = len(self._texts)
                self._texts.append(text)
            return self._ids[text]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True, **options: Any) -> str:
        return "".join(self._texts[t] for t in token_ids)


@dataclass(frozen=True, slots=True)
class StreamedToken:
    """A streamed token: its text, its id if the server returns it, and the top log-probabilities at its position."""

    text: str
    id: int | None
    top: tuple[float, ...]


class OpenAIEngine(Engine):
    """An engine that draws candidates in parallel requests. Each stream is closed at the end of its segment.

    The entropy of a next token is the midpoint of bounds (see `entropy_interval`); `mcp` is exact. Prompts are sent as token
    ids if there is a tokenizer and the server returns ids, and as text otherwise. The seed of a candidate is derived from
    (seed, segment, candidate). Whether the same seed gives the same text depends on the server.
    """

    def __init__(self, client: Client, served: ServedModel, local: ModelFiles | None = None, *, slots: int = 32) -> None:
        self.client, self.served, self.parts = client, served, (client,)
        self.name, self.context, self.rows = served.model, served.context, slots
        self.local_tokenizer = None if local is None else local.tokenizer
        self.chats = self.local_tokenizer is not None and self.local_tokenizer.chat_template is not None
        self.entropy_threshold = (local.config if local else {}).get("cards_entropy_threshold", Engine.entropy_threshold)
        self.stream_vocabulary = StreamVocabulary()
        if served.ids and local is not None:
            self.tokenizer, self.end_ids, self.vocabulary = local.tokenizer, local.end_ids, fingerprint(local.tokenizer)
        else:
            self.tokenizer, self.end_ids, self.vocabulary = self.stream_vocabulary, frozenset(), uuid4().hex

    def encode(self, prompt: str | Sequence[Message]) -> Prompt:
        if self.local_tokenizer is None:
            if not isinstance(prompt, str):
                raise PromptError(
                    f"The prompt is a list of messages, but the chat template of {self.name!r} is not known. Give raw text, or "
                    "the model's tokenizer (tokenizer=...)."
                )
            return Prompt(check_text(prompt), vocabulary=self.vocabulary)
        encoded = encode(self.local_tokenizer, prompt)
        if self.served.ids:
            return check_fits(encoded, self.name, self.context, self.vocab_size)
        begin = getattr(self.local_tokenizer, "bos_token", None) or ""  # the server adds this token
        text = encoded.text.removeprefix(begin)
        return replace(encoded, text=text, token_ids=(), vocabulary=self.vocabulary)

    def use_template(self, template: str) -> None:
        self.local_tokenizer, self.chats = with_template(self.local_tokenizer, template, self.name), True
        if self.served.ids:
            self.tokenizer = self.local_tokenizer

    def check_token_ids(self) -> None:
        if not self.served.ids:
            raise MismatchError(f"{self.name!r} reads prompts as text, not as token ids, because its server returns no ids.")

    def tokenize(self, text: str) -> tuple[int, ...]:
        if self.local_tokenizer is None or not self.served.ids:
            return super().tokenize(text)
        return tuple(self.local_tokenizer(text, add_special_tokens=False)["input_ids"])

    async def propose(self, ask: Ask) -> AsyncGenerator[list[Segment], None]:
        progress = ParallelProgress()
        async with aclosing(self._batches(ask, progress)) as batches:
            async for batch in batches:
                progress.stop_clock()
                yield batch
                progress.start_clock()

    def check_boundary(self, boundary: Boundary) -> None:
        if not boundary.reads_logits:
            return
        if not isinstance(boundary, Entropy) or boundary.measure == "evidential":
            raise MismatchError(
                f"This boundary needs all logits, but {self.client.address} returns only those of the most probable tokens. "
                "Choose an entropy boundary with measure entropy or mcp."
            )
        if not self.served.top:
            raise MismatchError(
                f"The server at {self.client.address} returns no log-probabilities, or changes them with the temperature, so "
                "the uncertainty is not known. Choose another boundary (fixed:15, punctuation, step, whole)."
            )

    def _batches(self, ask: Ask, progress: ParallelProgress) -> AsyncGenerator[list[Segment], None]:
        """Yield the candidates in order, each from its own request."""
        return in_order([self._candidate(replace(ask, first=ask.first + i, n=1), progress) for i in range(ask.n)])

    async def _candidate(self, ask: Ask, progress: ParallelProgress) -> Segment:
        self.check_boundary(ask.boundary)
        writer, finish_reason = self.writer(ask), None
        body = self._body(ask, writer.most)
        sent, recorded = len(body["prompt"]) if self.served.ids else 0, (0, 0)
        try:
            async with aclosing(self.client.events("/completions", body)) as events:
                async for event in events:
                    for choice in event.get("choices") or ():
                        self._write(writer, choice, progress)
                        finish_reason = choice.get("finish_reason")
                    recorded = self._record_usage(event, sent, recorded, progress)
                    if writer.segment is not None and not finish_reason:  # otherwise the usage event is about to come
                        break
        except RejectedRequestError as error:
            if error.too_long:
                raise PromptTooLongError(f"Prompt and response are too long for {self.name!r}: {error}") from error
            raise
        if writer.segment is None:
            raise UnavailableError(f"The server at {self.client.address} ended a stream without a finish_reason.")
        return writer.segment

    def _body(self, ask: Ask, max_tokens: int) -> dict[str, Any]:
        ids = [*ask.prompt.token_ids, *ask.response.token_ids]
        sampling = ask.sampling
        body: dict[str, Any] = {
            "model": self.served.model,
            "prompt": ids if self.served.ids else ask.prompt.text + ask.response.decoded.text,
            "max_tokens": max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": int(uniforms(ask.seed, ask.segment, ask.first, 1)[0] * 2**31),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.served.top:
            body["logprobs"] = self.served.top if ask.boundary.reads_logits else 1
        extras = dict(self.served.extras)
        if "top_k" in extras:
            extras |= {"top_k": sampling.top_k or 0, "min_p": sampling.min_p}
        elif sampling.min_p:
            raise MismatchError(f"The server at {self.client.address} does not support min_p. Leave it out.")
        if extras and self.served.ids:
            extras["return_tokens_as_token_ids"] = True  # different tokens can have the same text
        return body | extras

    def _write(self, writer: Writer, choice: dict[str, Any], progress: ParallelProgress) -> None:
        """Pass the tokens of a streamed choice to the writer until the segment ends."""
        tokens, reason = self._tokens(choice), choice.get("finish_reason")
        boundary = writer.ask.boundary
        progress.account.add(decoded_tokens=len(tokens))
        for i, token in enumerate(tokens):
            if writer.segment is not None:
                return
            drawn = len(writer.tokens)
            progress.reach(drawn + 1)
            if boundary.reads_logits and drawn >= boundary.minimum:
                uncertainty = self._uncertainty(boundary, token.top)
                if boundary.ends_before(uncertainty):
                    writer.end(entropy=uncertainty)
                    return
            last = reason == "stop" and i == len(tokens) - 1
            if last and not token.text:  # the token that ended the response, even if its id is unknown
                writer.end("stop", end_token=self._id(token))
            else:
                writer.push(self._id(token))
        if reason and writer.segment is None:
            # An empty segment would be proposed again and again if no complete character fits into it.
            by_boundary = reason == "length" and writer.most < writer.limit and writer.tokens
            writer.end(None if by_boundary else "stop" if reason == "stop" else "length")

    def _tokens(self, choice: dict[str, Any]) -> list[StreamedToken]:
        """Return the tokens of a streamed choice.

        llama.cpp returns only the last token of a character that has several. The tokenizer gives all of them.
        """
        tokens = tokens_of(choice)
        if not self.served.ids or "content" not in (choice.get("logprobs") or {}):
            return tokens
        complete: list[StreamedToken] = []
        for token in tokens:
            if UNFINISHED in token.text or UNFINISHED not in self.tokenizer.decode([self._id(token)]):
                complete.append(token)
            else:
                before = self.tokenize("\n")  # prevents a space that a tokenizer may add before the first word
                complete += [replace(token, id=id_) for id_ in self.tokenize("\n" + token.text)[len(before) :]]
        return complete

    def _uncertainty(self, boundary: Boundary, top: Sequence[float]) -> float:
        if not top:
            raise UnavailableError(f"The server at {self.client.address} did not return the log-probabilities of a token.")
        probabilities = [math.exp(min(0.0, p)) for p in top]
        if isinstance(boundary, Entropy) and boundary.measure == "mcp":
            return 1 - max(probabilities)
        low, high = entropy_interval(probabilities, self.served.top, self.served.vocabulary)
        return (low + high) / 2

    def _id(self, token: StreamedToken) -> int:
        if not self.served.ids:
            return self.stream_vocabulary.id_of(token.text)
        if token.id is None:
            raise UnavailableError(f"The server at {self.client.address} did not return the id of a token.")
        return token.id

    def _record_usage(
        self, event: dict[str, Any], sent: int, recorded: tuple[int, int], progress: ParallelProgress
    ) -> tuple[int, int]:
        """Record prefill and cached tokens beyond those that this stream has `recorded`. Return the new totals.

        `sent` is the number of token ids sent. Servers report usage in the last event; llama.cpp has timings in each event.
        """
        usage, timings = event.get("usage") or {}, event.get("timings") or {}
        cached = timings.get("cache_n") or (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        read = (sent or usage.get("prompt_tokens") or timings.get("prompt_n", 0) + cached) - cached
        progress.account.add(prefill_tokens=read - recorded[0], cached_tokens=cached - recorded[1])
        return read, cached


class ParallelProgress:
    """Counts the steps and seconds of one ask. Its candidates are drawn together, so the longest gives the steps."""

    def __init__(self) -> None:
        self.account, self.steps, self.started = current_account(), 0, time.perf_counter()

    def reach(self, steps: int) -> None:
        if steps > self.steps:
            self.account.add(steps=steps - self.steps)
            self.steps = steps

    def stop_clock(self) -> None:
        self.account.add(seconds=time.perf_counter() - self.started)

    def start_clock(self) -> None:
        self.started = time.perf_counter()


def tokens_of(choice: dict[str, Any]) -> list[StreamedToken]:
    """Return the tokens of a streamed choice in OpenAI's or llama.cpp's format.

    Without log-probabilities, the text of the choice is one token.
    """
    text, logprobs = choice.get("text") or "", choice.get("logprobs") or {}
    if "content" in logprobs:
        content = logprobs["content"] or ()
        names = [entry["token"] for entry in content]
        ids = [entry.get("id") for entry in content]
        tops = [tuple(other["logprob"] for other in entry.get("top_logprobs") or ()) for entry in content]
    else:
        names = list(logprobs.get("tokens") or ())
        ids = list(choice.get("token_ids") or ())
        names = names or [text] * len(ids or ([0] if text else []))
        ids = ids or [None] * len(names)
        tops = [tuple((one or {}).values()) for one in logprobs.get("top_logprobs") or [None] * len(names)]
    texts = names if "".join(names) == text else [""] * (len(names) - 1) + [text] * bool(names)
    return [StreamedToken(text, id_, top) for text, id_, top in zip(texts, ids, tops, strict=True)]
