"""The contract of engines, which propose text from an LM and are stateless for the caller."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from cards.engines.ask import Ask as Ask
from cards.engines.detokenizer import TokenDecoder
from cards.engines.exclusions import Exclusions
from cards.engines.writer import Writer, make_segment
from cards.errors import MismatchError
from cards.events import Message, Prompt, Response, Segment
from cards.fingerprint import Fingerprint
from cards.parts import Composite

if TYPE_CHECKING:
    import asyncio

    import numpy as np
    from numpy.typing import NDArray

    from cards.boundaries import Boundary


class Engine(Composite, ABC):
    """An LM that proposes candidates. `has` names its capabilities: `segments`, `logits`, `logprobs`."""

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
    requests: int = 0  # requests in progress

    @abstractmethod
    def encode(self, prompt: str | Sequence[Message]) -> Prompt:
        """Tokenize raw text, or messages rendered with the model's chat template. Raises PromptError."""

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

    async def logprobs(
        self, prompt: Prompt, response: Response, last: int | None = None, temperature: float = 1.0
    ) -> NDArray[np.float64]:
        """Return the log-probabilities (natural log, whole vocabulary) of the response's `last` tokens at a temperature.

        `last` None means all of them. Raises MismatchError without this capability.
        """
        raise MismatchError(f"Engine {self.name!r} does not provide log-probabilities.")

    @property
    def rows_in_use(self) -> int:
        """Number of sequences in progress: at least one for each request."""
        return self.requests

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Tokenize raw text without special tokens at its ends. Raises MismatchError if the engine cannot."""
        raise MismatchError(f"Engine {self.name!r} cannot split text into tokens.")

    def check_boundary(self, boundary: Boundary) -> None:
        """Raise MismatchError if this engine cannot end segments by the rule."""

    def without_layers(self, share: float) -> Engine:
        """Return an engine that skips this fraction of the model's layers, for drafts. Raises MismatchError or ModelError."""
        raise MismatchError(f"Engine {self.name!r} cannot skip layers of its model.")

    def writer(self, ask: Ask) -> Writer:
        """Return a writer for a candidate of the ask whose tokens the method chooses itself."""
        return Writer(ask, self.tokenizer, self.end_ids, self.context)

    def extended(self, prompt: Prompt, response: Response, token_ids: Sequence[int]) -> Response:
        """Return the response extended by these tokens. Only the last of them can end it."""
        return response + make_segment(self.tokenizer, self.end_ids, prompt.token_ids + response.token_ids, token_ids)

    def width(self, acceptance_rate: float, most: int) -> int:
        """Return how many candidates to request together, at most `most`. This affects only the speed."""
        return min(most, 4)


def call_in_loop(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: Any) -> None:
    """Call a function in the event loop of a caller. Do nothing if the loop is closed."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)
