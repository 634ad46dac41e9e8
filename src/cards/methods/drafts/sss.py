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
from cards.methods.tokens.driver import limit_to_context
from cards.methods.vanilla import Vanilla
from cards.rewards.base import Reward
from cards.sampling import Sampling, distribution
from cards.settings import setting
from cards.usage import booked_as

if TYPE_CHECKING:
    from cards.engines.speculative import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class SSS(Vanilla):
    """Speculative sampling whose test is shifted, so that the alignment of the small draft model carries over to the LM.

        generate `lookahead` tokens from pi_a, accept each with probability min(1, pi / pi_a)
        replace the first rejected token by a sample from pi pi_a / pi_s, normalized, and begin the next round

    pi is the LM, pi_a is `aligned`, and pi_s is `reference`, the same small model before its alignment. No reward is needed.
    Every token follows

        min(pi, pi_a) + (1 - sum min(pi, pi_a)) * normalized(pi pi_a / pi_s)

    temperature, top_k and top_p apply to pi and pi_a. Only the temperature applies to pi_s, which is a divisor. If pi and
    pi_a have no token in common, the token is sampled from pi.

    Our choice: if all tokens of a round are accepted, no further token is sampled in it, so the law holds for every token.
    `reference` runs only when a token is rejected.
    """

    name: ClassVar[str] = "sss"
    family: ClassVar[str] = "drafts"
    summary: ClassVar[str] = "Carry the alignment of a small model over to the model by speculative sampling."
    needs: ClassVar[frozenset[str]] = frozenset({"segments", "logits"})

    aligned: EngineLike = setting("tiny-aligned", help="Small LM, aligned by training, which generates ahead.", loads="engine")
    reference: EngineLike = setting("tiny", help="The small LM before its alignment.", loads="engine")
    lookahead: int = setting(
        4, help="Number of tokens that the small model generates per round.", at_least=1, typical=(1, 16), advanced=True
    )

    def validate(self) -> None:
        check(
            self.temperature > 0,
            f"temperature must be positive, got {self.temperature}: a greedy model leaves nothing to shift.",
        )

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        aligned, reference = loaded(self.aligned), loaded(self.reference)
        request = limit_to_context(request, (engine, aligned, reference))
        engine = SpeculativeEngine(engine, aligned, self.lookahead, residual=self.shifted, bonus=False)
        return Vanilla.stream(self, request, engine, reward)

    async def shifted(self, prompt: Prompt, response: Response, p: Floats, q: Floats) -> Floats:
        """Return pi pi_a / pi_s of the next token, unnormalized."""
        with booked_as("draft"):
            [logits] = await loaded(self.reference).logits(prompt, response)
        weights: Floats = p[: len(q)] * q / distribution(logits, Sampling(self.temperature)).clip(1e-300)
        return weights
