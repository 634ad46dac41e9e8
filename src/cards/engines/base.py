"""The Engine contract: it proposes text from an LM and keeps nothing for its caller."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from cards.engines.ask import Ask as Ask
from cards.engines.text import Decodes
from cards.engines.writer import Writer, written
from cards.errors import MismatchError
from cards.events import Message, Prompt, Response, Segment
from cards.fingerprint import Fingerprint
from cards.parts import Composite

if TYPE_CHECKING:
    import asyncio

    import numpy as np
    from numpy.typing import NDArray


class Engine(Composite, ABC):
    """An LM that proposes. `has` names what it offers to methods: `segments`, `logits`, `logprobs`."""

    has: ClassVar[frozenset[str]] = frozenset({"segments"})
    name: str
    context: int  # tokens that prompt and answer may have together
    rows: int  # sequences that it can decode at once
    entropy_threshold: float = 3.0  # a sensible tau_u for this LM
    chats: bool = True  # whether it renders messages
    vocabulary: Fingerprint | str = ""  # fingerprint of its tokenizer: engines with the same one can share token ids
    tokenizer: Decodes
    end_ids: frozenset[int]  # tokens that end an answer
    requests: int = 0  # being served now

    @abstractmethod
    def encode(self, prompt: str | Sequence[Message]) -> Prompt:
        """Tokens of raw text as it stands, or of messages under the model's chat template. Raises PromptError."""

    @abstractmethod
    def propose(self, ask: Ask) -> AsyncGenerator[list[Segment], None]:
        """Yield the candidates in order of their number, in lists that hold all that are ready.

        The first list comes when the first candidate is complete, so a caller that needs no more can stop: closing
        the iterator (use contextlib.aclosing) ends the rest and frees their rows.
        """

    async def logits(self, prompt: Prompt, response: Response, last: int = 1) -> NDArray[np.float32]:
        """Raw next-token logits [last, vocabulary] after each of the last `last` tokens of prompt + response.

        Raises PromptError if there are more tokens than the context or fewer than `last`.
        """
        raise MismatchError(f"Engine {self.name!r} does not give logits.")

    async def logprobs(self, prompt: Prompt, response: Response, last: int | None = None) -> NDArray[np.float64]:
        """Natural-log probabilities (temperature 1, whole vocabulary) of the response's tokens, or of the `last` of them."""
        raise MismatchError(f"Engine {self.name!r} does not give log-probabilities.")

    @property
    def rows_in_use(self) -> int:
        """Sequences being decoded now, as far as the engine knows: at least one for each request."""
        return self.requests

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Tokens of a text as it stands, without those that mark a beginning or an end."""
        raise MismatchError(f"Engine {self.name!r} does not read text as tokens.")

    def without_layers(self, share: float) -> Engine:
        """An engine of the same model without this fraction of its layers, for drafts. Raises MismatchError or ModelError."""
        raise MismatchError(f"Engine {self.name!r} has no layers that could be skipped.")

    def writer(self, ask: Ask) -> Writer:
        """Takes tokens that a method has chosen itself, as a candidate of the ask."""
        return Writer(ask, self.tokenizer, self.end_ids, self.context)

    def extended(self, prompt: Prompt, response: Response, token_ids: Sequence[int]) -> Response:
        """The response with these tokens, of which only the last may end it."""
        return response + written(self.tokenizer, self.end_ids, prompt.token_ids + response.token_ids, token_ids)

    def width(self, acceptance_rate: float, most: int) -> int:
        """How many candidates to ask for at once, given the acceptance rate so far: a speed dial, nothing else."""
        return min(most, 4)


def tell(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: Any) -> None:
    """Have a caller's loop call a function; nothing, where the loop was closed and nobody wants to know any more."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)
