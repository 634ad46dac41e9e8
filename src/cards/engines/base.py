"""The contract of engines, which propose text from an LM and are stateless for the caller."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from cards.engines.ask import Ask as Ask
from cards.engines.detokenizer import TokenDecoder
from cards.engines.exclusions import Exclusions
from cards.engines.shaper import Shaper
from cards.engines.text import check_fits, check_ids, prompt_text, with_template
from cards.engines.writer import Writer, make_segment
from cards.errors import MismatchError, check
from cards.events import Message, Prompt, Response, Segment
from cards.fingerprint import Fingerprint
from cards.parts import Composite
from cards.prompts import rendered_as
from cards.shaping import NO_SHAPING, Shaping

if TYPE_CHECKING:
    import asyncio

    import numpy as np
    from numpy.typing import NDArray

    from cards.boundaries import Boundary


class Engine(Composite, ABC):
    """An LM that proposes candidates. `has` names its capabilities: `segments`, `logits`, `logprobs`, `shaping`, `layers`."""

    has: ClassVar[frozenset[str]] = frozenset({"segments"})
    name: str
    context: int  # maximum number of tokens of prompt and response together
    rows: int  # maximum number of sequences decoded together
    entropy_threshold: float = 3.0  # default of tau_u for this LM, in nats
    chats: bool = True  # whether it has a chat template
    vocab_size: int | None = None  # number of token ids that the model can read, if known
    vocabulary: Fingerprint | str = ""  # engines with equal fingerprints share token ids
    tokenizer: TokenDecoder
    end_ids: frozenset[int]  # tokens that end a response
    exclusions: Exclusions = Exclusions()  # tokens that no proposal contains
    repetition_penalty: float = 1.0  # of requests that set none
    requests: int = 0  # requests in progress

    @abstractmethod
    def encode(self, prompt: str | Sequence[Message]) -> Prompt:
        """Tokenize raw text, or messages rendered with the model's chat template. Raises PromptError."""

    def encode_like(self, prompt: Prompt, given: str | Sequence[Message]) -> Prompt:
        """Encode another raw text, or other messages, in place of those of a prompt. Raises PromptError.

        The template variables and the beginning of the response stay: `begun` and `thought`.
        """
        encoded = self.encode(given if isinstance(given, str) else rendered_as(prompt, given))
        return encoded.followed_by(prompt.thought) if prompt.thought.text or prompt.thought.token_ids else encoded

    @abstractmethod
    def propose(self, ask: Ask) -> AsyncGenerator[list[Segment], None]:
        """Yield the candidates in order of their numbers, in lists of all that are complete.

        The first list arrives when the first candidate is complete. Closing the iterator (use contextlib.aclosing) cancels
        the other candidates and frees their cache slots.
        """

    async def logits(self, prompt: Prompt, response: Response, last: int = 1) -> NDArray[np.float32]:
        """Return the raw next-token logits [last, vocabulary] after each of the last `last` tokens of prompt + response.

        Raises PromptError if the tokens exceed the context or are fewer than `last`, and MismatchError without this capability.
        """
        raise MismatchError(f"Engine {self.name!r} does not provide logits.")

    async def shaped_logits(
        self, prompt: Prompt, response: Response, last: int, shaper: Shaper | None
    ) -> NDArray[np.floating[Any]]:
        """Return the logits as `logits` does, shaped for a request whose response so far is `response`.

        Raises SettingError if the grammar of the request allows no token.
        """
        import numpy as np

        rows = await self.logits(prompt, response, last)
        if shaper is None:
            return rows
        ids = response.token_ids
        return np.stack([shaper.shaped(row, ids[:at]) for at, row in enumerate(rows, len(ids) + 1 - last)])

    async def logprobs(
        self, prompt: Prompt, response: Response, last: int | None = None, temperature: float = 1.0
    ) -> NDArray[np.float64]:
        """Return the log-probabilities (natural log, whole vocabulary) of the response's `last` tokens at a temperature.

        `last` None means all of them. Raises MismatchError without this capability.
        """
        raise MismatchError(f"Engine {self.name!r} does not provide log-probabilities.")

    def use_template(self, template: str) -> None:
        """Render messages with this chat template (Jinja). Raises MismatchError if the engine has no tokenizer for that."""
        self.tokenizer, self.chats = with_template(self.tokenizer, template, self.name), True

    @property
    def rows_in_use(self) -> int:
        """Number of sequences in progress: at least one for each request."""
        return self.requests

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Tokenize raw text without special tokens at its ends. Raises MismatchError if the engine cannot."""
        raise MismatchError(f"Engine {self.name!r} cannot split text into tokens.")

    def check_token_ids(self) -> None:
        """Raise MismatchError if the engine reads only text."""

    def prompt_of(self, token_ids: Sequence[int]) -> Prompt:
        """Return the prompt with these token ids. Its text has no tokens that tokenizers write before every text.

        Raises PromptError, or MismatchError if the engine reads only text.
        """
        self.check_token_ids()
        check_ids(token_ids, self.name, self.vocab_size)
        template = getattr(self.tokenizer, "chat_template", None)
        prompt = Prompt(prompt_text(self.tokenizer, token_ids), tuple(token_ids), None, self.vocabulary, template)
        return check_fits(prompt, self.name, self.context, self.vocab_size)

    def check_boundary(self, boundary: Boundary) -> None:
        """Raise MismatchError if this engine cannot end segments by the rule."""

    def check_shaping(self, shaping: Shaping) -> None:
        """Raise MismatchError if this engine cannot shape its proposals, and SettingError for an unknown token id."""
        if shaping and "shaping" not in self.has:
            raise MismatchError(
                f"Engine {self.name!r} cannot apply grammars, logit_bias or penalties exactly. Load the model in this process "
                "or in vLLM (a vLLM server needs the logits processor of this package), or leave them out."
            )
        for token, _ in shaping.logit_bias:
            check(
                self.vocab_size is None or token < self.vocab_size,
                f"logit_bias has the token id {token}, but {self.name!r} has the ids below {self.vocab_size}.",
            )

    def shaper(self, shaping: Shaping, prompt: Prompt) -> Shaper | None:
        """Return the shaper of a request, or None if it changes no logits. Raises MismatchError or SettingError."""
        self.check_shaping(shaping)
        penalty = self.repetition_penalty if shaping.repetition_penalty is None else shaping.repetition_penalty
        if not shaping and penalty == 1:
            return None
        grammar = None
        if shaping.grammar is not None:
            from cards.engines.matcher import token_grammar

            grammar = token_grammar(shaping.grammar, self.tokenizer, self.end_ids, self.vocab_size)
        return Shaper(shaping, penalty, prompt.token_ids, grammar, prompt.thought.token_ids)

    def without_layers(self, share: float) -> Engine:
        """Return an engine that skips this fraction of the model's layers, for drafts. Raises MismatchError or ModelError."""
        raise MismatchError(f"Engine {self.name!r} cannot skip layers of its model.")

    def contrast_layers(self, layers: str | tuple[int, ...], plausibility: float) -> Engine:
        """Return an engine whose logits contrast the last layer with an early one (DoLa). Raises MismatchError or SettingError.

        It needs the capability `layers`.
        """
        raise MismatchError(
            f"Engine {self.name!r} does not provide the logits of its layers. Load the model in this process with transformers."
        )

    def writer(self, ask: Ask) -> Writer:
        """Return a writer for a candidate of the ask whose tokens the method chooses itself."""
        return Writer(ask, self.tokenizer, self.end_ids, self.context, self.shaper(ask.shaping, ask.prompt))

    def extended(self, prompt: Prompt, response: Response, token_ids: Sequence[int], shaping: Shaping = NO_SHAPING) -> Response:
        """Return the response extended by these tokens. Only the last of them can end it, or complete the grammar."""
        before = prompt.token_ids + response.token_ids
        longer = response + make_segment(self.tokenizer, self.end_ids, before, token_ids)
        shaper = self.shaper(shaping, prompt) if shaping.grammar is not None and longer.finish_reason is None else None
        return replace(longer, finish_reason="stop") if shaper is not None and shaper.ends(longer.token_ids) else longer

    def width(self, acceptance_rate: float, most: int) -> int:
        """Return how many candidates to request together, at most `most`. This affects only the speed."""
        return min(most, 4)


def call_in_loop(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: Any) -> None:
    """Call a function in the event loop of a caller. Do nothing if the loop is closed."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)
