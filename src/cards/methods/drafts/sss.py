"""SSS, reward-shifted speculative sampling (Li et al., arXiv 2508.15044)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from cards.engines.base import Engine
from cards.engines.speculative import SpeculativeEngine, check_gamma
from cards.errors import check
from cards.events import Event, Prompt, Response
from cards.methods.base import EngineLike, Request, model_setting
from cards.methods.tokens.driver import within
from cards.methods.vanilla import Vanilla
from cards.rewards.base import Reward
from cards.sampling import Sampling, distribution
from cards.usage import booked_as

if TYPE_CHECKING:
    from cards.engines.speculative import Floats


@dataclass(frozen=True, slots=True)
class SSS(Vanilla):
    """A small aligned model writes ahead, and the test by the LM is bent so that its alignment carries over; no reward.

        draft gamma tokens from pi_a, keep each with probability min(1, pi / pi_a)
        in place of the first that is not kept draw from pi pi_a / pi_s, normalised, and begin the next round

    pi: the LM, pi_a: `aligned`, pi_s: `reference`, which is `aligned` before it was aligned. So every token follows

        min(pi, pi_a) + (1 - sum min(pi, pi_a)) * normalised(pi pi_a / pi_s)

    pi and pi_a are taken under temperature, top_k and top_p, pi_s under the temperature alone, as it divides; if no token is
    left to both pi and pi_a, pi is drawn from.

    Our choice: when all of a round are kept nothing more is drawn in it, so that this law holds for every token.
    `reference` is read only where a token is not kept.
    """

    name: ClassVar[str] = "sss"
    needs: ClassVar[frozenset[str]] = frozenset({"segments", "logits"})

    aligned: EngineLike = model_setting("engine", "tiny-aligned")
    reference: EngineLike = model_setting("engine", "tiny")
    gamma: int = 4

    def __post_init__(self) -> None:
        Vanilla.__post_init__(self)
        check_gamma(self.gamma)
        check(self.temperature > 0, "temperature must be positive: a greedy LM leaves nothing to shift.")

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        aligned, reference = cast(Engine, self.aligned), cast(Engine, self.reference)
        request = within(request, (engine, aligned, reference))
        engine = SpeculativeEngine(engine, aligned, self.gamma, redraw=self.shifted, bonus=False)
        return Vanilla.stream(self, request, engine, reward)

    async def shifted(self, prompt: Prompt, response: Response, p: Floats, q: Floats) -> Floats:
        """pi pi_a / pi_s of the next token, not normalised."""
        with booked_as("draft"):
            [logits] = await cast(Engine, self.reference).logits(prompt, response)
        weights: Floats = p[: len(q)] * q / distribution(logits, Sampling(self.temperature)).clip(1e-300)
        return weights
