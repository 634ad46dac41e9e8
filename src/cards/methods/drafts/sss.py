"""SSS, reward-shifted speculative sampling (Li et al., arXiv 2508.15044)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cards.engines.base import Engine
from cards.engines.speculative import SpeculativeEngine
from cards.errors import check
from cards.events import Event, Prompt, Response
from cards.methods.base import EngineLike, Request, loaded
from cards.methods.tokens.driver import within
from cards.methods.vanilla import Vanilla
from cards.rewards.base import Reward
from cards.sampling import Sampling, distribution
from cards.settings import setting
from cards.usage import booked_as

if TYPE_CHECKING:
    from cards.engines.speculative import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class SSS(Vanilla):
    """A small aligned model writes ahead, and the test by the LM is bent so that its alignment carries over; no reward.

        draft `lookahead` tokens from pi_a, keep each with probability min(1, pi / pi_a)
        in place of the first that is not kept draw from pi pi_a / pi_s, normalised, and begin the next round

    pi: the LM, pi_a: `aligned`, pi_s: `reference`, which is `aligned` before it was aligned. So every token follows

        min(pi, pi_a) + (1 - sum min(pi, pi_a)) * normalised(pi pi_a / pi_s)

    pi and pi_a are taken under temperature, top_k and top_p, pi_s under the temperature alone, as it divides; if no token is
    left to both pi and pi_a, pi is drawn from.

    Our choice: when all of a round are kept nothing more is drawn in it, so that this law holds for every token.
    `reference` is read only where a token is not kept.
    """

    name: ClassVar[str] = "sss"
    family: ClassVar[str] = "drafts"
    summary: ClassVar[str] = "Speculative sampling with an aligned small model, whose alignment carries over."
    needs: ClassVar[frozenset[str]] = frozenset({"segments", "logits"})

    aligned: EngineLike = setting("tiny-aligned", help="Small LM, aligned by training, that writes ahead.", loads="engine")
    reference: EngineLike = setting("tiny", help="The small LM before it was aligned.", loads="engine")
    lookahead: int = setting(
        4, help="Tokens that the small model writes ahead in a round.", at_least=1, typical=(1, 16), advanced=True
    )

    def validate(self) -> None:
        check(self.temperature > 0, "temperature must be positive: a greedy model leaves nothing to shift.")

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        aligned, reference = loaded(self.aligned), loaded(self.reference)
        request = within(request, (engine, aligned, reference))
        engine = SpeculativeEngine(engine, aligned, self.lookahead, residual=self.shifted, bonus=False)
        return Vanilla.stream(self, request, engine, reward)

    async def shifted(self, prompt: Prompt, response: Response, p: Floats, q: Floats) -> Floats:
        """pi pi_a / pi_s of the next token, not normalised."""
        with booked_as("draft"):
            [logits] = await loaded(self.reference).logits(prompt, response)
        weights: Floats = p[: len(q)] * q / distribution(logits, Sampling(self.temperature)).clip(1e-300)
        return weights
