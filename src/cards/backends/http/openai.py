"""Any OpenAI-compatible server as an engine: streamed completions, cut where a segment ends."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any
from uuid import uuid4

from cards.backends.http.client import Client, RefusedError
from cards.backends.http.served import ModelFiles, ServedModel
from cards.boundaries import Boundary, Entropy
from cards.engines.ask import Ask
from cards.engines.base import Engine
from cards.engines.interval import entropy_interval
from cards.engines.ordered import in_order
from cards.engines.text import UNFINISHED, check_fits, encode
from cards.engines.writer import Writer
from cards.errors import MismatchError, PromptError, UnavailableError
from cards.events import Message, Prompt, Segment
from cards.fingerprint import fingerprint
from cards.sampling import uniforms
from cards.usage import current_account


class Pieces:
    """Tokens of a server that tells no ids: each piece of text that it streams gets a number of its own."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._pieces: list[str] = []
        self._lock = Lock()

    def number(self, piece: str) -> int:
        with self._lock:
            if piece not in self._numbers:
                self._numbers[piece] = len(self._pieces)
                self._pieces.append(piece)
            return self._numbers[piece]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True, **options: Any) -> str:
        return "".join(self._pieces[t] for t in token_ids)


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it was streamed: its text, its id where it is told, and log-probabilities of the likeliest in its place."""

    piece: str
    id: int | None
    top: tuple[float, ...]


class OpenAIEngine(Engine):
    """Draws candidates in parallel requests, each a stream that is closed at the end of its segment.

    The entropy of a next token is an interval (see `entropy_interval`), of which the middle counts; `mcp` is exact. Prompts go
    out as token ids where a tokenizer is at hand and the server tells ids, as text otherwise. Each candidate's seed is
    derived from (seed, segment, candidate): whether the same seed gives the same text is up to the server.
    """

    def __init__(self, client: Client, served: ServedModel, local: ModelFiles | None = None, *, slots: int = 32) -> None:
        self.client, self.served = client, served
        self.name, self.context, self.rows = served.model, served.context, slots
        self.own = None if local is None else local.tokenizer
        self.chats = self.own is not None and self.own.chat_template is not None
        self.entropy_threshold = getattr(local and local.config, "cards_entropy_threshold", Engine.entropy_threshold)
        self.pieces = Pieces()
        if served.ids and local is not None:
            self.tokenizer, self.end_ids, self.vocabulary = local.tokenizer, local.end_ids, fingerprint(local.tokenizer)
        else:
            self.tokenizer, self.end_ids, self.vocabulary = self.pieces, frozenset(), uuid4().hex

    def encode(self, prompt: str | Sequence[Message]) -> Prompt:
        if self.own is None:
            if not isinstance(prompt, str):
                raise PromptError(
                    f"The prompt is a list of messages, and the chat template of {self.name!r} is not known here: give raw "
                    "text, or the model's tokenizer (tokenizer=...)."
                )
            if not prompt.strip():
                raise PromptError("The prompt is empty: give the text to answer.")
            return Prompt(prompt, vocabulary=self.vocabulary)
        encoded = encode(self.own, prompt)
        if self.served.ids:
            return check_fits(encoded, self.name, self.context)
        text = encoded.text.removeprefix(str(self.own.bos_token or ""))  # the server adds the mark of the beginning itself
        return Prompt(text, (), encoded.messages, self.vocabulary, encoded.template)

    def tokenize(self, text: str) -> tuple[int, ...]:
        if self.own is None or not self.served.ids:
            return super().tokenize(text)
        return tuple(self.own(text, add_special_tokens=False)["input_ids"])

    async def propose(self, ask: Ask) -> AsyncGenerator[list[Segment], None]:
        self._check(ask.boundary)
        depth = Depth()
        async with aclosing(in_order([self._candidate(ask, ask.first + i, depth) for i in range(ask.n)])) as batches:
            async for batch in batches:
                depth.book()
                yield batch
                depth.resume()

    async def aclose(self) -> None:
        await self.client.aclose()

    def _check(self, boundary: Boundary) -> None:
        if not boundary.reads_logits:
            return
        if not isinstance(boundary, Entropy) or boundary.measure == "evidential":
            raise MismatchError(f"This boundary needs all logits, and {self.client.address} shows the likeliest tokens only.")
        if not self.served.top:
            raise MismatchError(
                f"The server at {self.client.address} shows no log-probabilities from before temperature, so uncertainty "
                "cannot end segments: choose another boundary (fixed:15, punctuation, step, whole)."
            )

    async def _candidate(self, ask: Ask, number: int, depth: Depth) -> Segment:
        writer, ended = self.writer(ask), None
        body = self._body(ask, number, writer.most)
        sent, booked = len(body["prompt"]) if self.served.ids else 0, (0, 0)
        try:
            async with aclosing(self.client.events("/completions", body)) as events:
                async for event in events:
                    for choice in event.get("choices") or ():
                        self._take(writer, choice, depth)
                        ended = choice.get("finish_reason")
                    booked = self._book(event, sent, booked, depth)
                    if writer.segment is not None and not ended:  # leave; where it has ended, its last words are near
                        break
        except RefusedError as error:
            if error.too_long:
                raise PromptError(f"Prompt and answer are too long for {self.name!r}: {error}") from error
            raise
        if writer.segment is None:
            raise UnavailableError(f"The server at {self.client.address} ended a stream without a finish_reason.")
        return writer.segment

    def _body(self, ask: Ask, number: int, most: int) -> dict[str, Any]:
        ids = [*ask.prompt.token_ids, *ask.response.token_ids]
        sampling = ask.sampling
        body: dict[str, Any] = {
            "model": self.served.model,
            "prompt": ids if self.served.ids else ask.prompt.text + ask.response.text,
            "max_tokens": most,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": int(uniforms(ask.seed, ask.segment, number, 1)[0] * 2**31),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.served.top:
            body["logprobs"] = self.served.top if ask.boundary.reads_logits else 1
        extras = dict(self.served.extras)
        if "top_k" in extras:
            extras["top_k"] = sampling.top_k or 0
        if extras and self.served.ids:
            extras["return_tokens_as_token_ids"] = True  # by name several can be one
        return body | extras

    def _take(self, writer: Writer, choice: dict[str, Any], depth: Depth) -> None:
        """Give a streamed piece to the writer, up to where it ends."""
        tokens, reason = self._tokens(choice), choice.get("finish_reason")
        boundary = writer.ask.boundary
        depth.account.add(decoded_tokens=len(tokens))
        for i, token in enumerate(tokens):
            if writer.segment is not None:
                return
            drawn = len(writer.tokens)
            depth.reach(drawn + 1)
            if boundary.reads_logits and drawn >= boundary.minimum:
                uncertainty = self._uncertainty(boundary, token.top)
                if boundary.ends_before(uncertainty):
                    writer.end(entropy=uncertainty)
                    return
            last = reason == "stop" and i == len(tokens) - 1
            if last and not token.piece:  # it ended the answer, whatever it is
                writer.tokens.append(self._id(token))
                writer.end("stop")
            else:
                writer.push(self._id(token))
        if reason and writer.segment is None:
            # The server counts as we do, or nearly so. A segment of nothing, where no whole character fits, would come again.
            by_boundary = reason == "length" and writer.most < writer.limit and writer.tokens
            writer.end(None if by_boundary else "stop" if reason == "stop" else "length")

    def _tokens(self, choice: dict[str, Any]) -> list[Token]:
        """The tokens of a streamed piece. Of a character's several, llama.cpp tells the last: the tokenizer knows them all."""
        tokens = tokens_of(choice)
        if not self.served.ids or "content" not in (choice.get("logprobs") or {}):
            return tokens
        whole: list[Token] = []
        for token in tokens:
            if UNFINISHED in token.piece or UNFINISHED not in self.tokenizer.decode([self._id(token)]):
                whole.append(token)
            else:
                before = self.tokenize("\n")  # a tokenizer may put a space before the first word
                whole += [replace(token, id=id_) for id_ in self.tokenize("\n" + token.piece)[len(before) :]]
        return whole

    def _uncertainty(self, boundary: Boundary, top: Sequence[float]) -> float:
        if not top:
            raise UnavailableError(f"The server at {self.client.address} left out the log-probabilities of a token.")
        probabilities = [math.exp(min(0.0, p)) for p in top]
        if isinstance(boundary, Entropy) and boundary.measure == "mcp":
            return 1 - max(probabilities)
        low, high = entropy_interval(probabilities, self.served.top, self.served.vocabulary)
        return (low + high) / 2

    def _id(self, token: Token) -> int:
        if not self.served.ids:
            return self.pieces.number(token.piece)
        if token.id is None:
            raise UnavailableError(f"The server at {self.client.address} left out the id of a token.")
        return token.id

    def _book(self, event: dict[str, Any], sent: int, booked: tuple[int, int], depth: Depth) -> tuple[int, int]:
        """Book what was read and what was found in the server's cache, beyond what is booked of this stream; returns both.

        `sent` is how many ids went out. The server says the rest: in the last event, or in every one (llama.cpp's timings).
        """
        usage, timings = event.get("usage") or {}, event.get("timings") or {}
        cached = timings.get("cache_n") or (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        read = (sent or usage.get("prompt_tokens") or timings.get("prompt_n", 0) + cached) - cached
        depth.account.add(prefill_tokens=read - booked[0], cached_tokens=cached - booked[1])
        return read, cached


class Depth:
    """The steps and seconds of an ask: candidates take their steps together, so those of the longest one count."""

    def __init__(self) -> None:
        self.account, self.steps, self.since = current_account(), 0, time.perf_counter()

    def reach(self, steps: int) -> None:
        if steps > self.steps:
            self.account.add(steps=steps - self.steps)
            self.steps = steps

    def book(self) -> None:
        self.account.add(seconds=time.perf_counter() - self.since)

    def resume(self) -> None:
        self.since = time.perf_counter()


def tokens_of(choice: dict[str, Any]) -> list[Token]:
    """The tokens of a streamed piece, in OpenAI's form or in llama.cpp's; without log-probabilities the piece is one."""
    text, shown = choice.get("text") or "", choice.get("logprobs") or {}
    if "content" in shown:
        content = shown["content"] or ()
        names = [entry["token"] for entry in content]
        ids = [entry.get("id") for entry in content]
        tops = [tuple(other["logprob"] for other in entry.get("top_logprobs") or ()) for entry in content]
    else:
        names = list(shown.get("tokens") or ())
        ids = list(choice.get("token_ids") or ())
        names = names or [text] * len(ids or ([0] if text else []))
        ids = ids or [None] * len(names)
        tops = [tuple((one or {}).values()) for one in shown.get("top_logprobs") or [None] * len(names)]
    pieces = names if "".join(names) == text else [""] * (len(names) - 1) + [text] * bool(names)
    return [Token(piece, id_, top) for piece, id_, top in zip(pieces, ids, tops, strict=True)]
