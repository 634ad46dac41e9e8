"""SSS, reward-shifted speculative sampling (Li et al., arXiv 2508.15044)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from cards.engines.base import Engine
from cards.engines.speculative import Shift, SpeculativeEngine, residual
from cards.errors import check
from cards.events import Event
from cards.methods.base import EngineLike, Request, loaded
from cards.methods.tokens.driver import limit_to_context
from cards.methods.vanilla import Vanilla
from cards.rewards.base import Reward
from cards.sampling import Sampling
from cards.settings import setting

if TYPE_CHECKING:
    from cards.engines.speculative import Floats


Test = Literal["exact", "paper", "repository"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SSS(Vanilla):
    """Speculative sampling whose test is shifted, so that the alignment of the small draft model carries over to the LM.

        aim = pi pi_a / pi_s, normalized
        generate `lookahead` tokens from pi_a, accept each with probability min(1, aim / pi_a)
        replace the first rejected token by a sample from max(0, aim - pi_a), and begin the next round

    pi is the LM, pi_a is `aligned`, and pi_s is `reference`, the same small model before its alignment. No reward is needed.
    Every token follows the aim. The published tests only approach it; `test` selects them:

        paper       accept with min(1, pi / pi_s), replace from pi_a max(0, pi / pi_s - 1)    (equations 6 and 7)
        repository  accept with min(1, pi / pi_a), replace from the aim                       (the published code)

    temperature, top_k and top_p apply to pi and pi_a. Only the temperature applies to pi_s, which is a divisor. If pi and
    pi_a have no token in common, the token is sampled from pi.

    Our choices: the exact test is ours, at the cost of the published ones. If all tokens of a round are accepted, no further
    token is sampled in it, so the law holds for every token.
    """

    name: ClassVar[str] = "sss"
    family: ClassVar[str] = "drafts"
    tests: ClassVar[bool] = True
    summary: ClassVar[str] = "Carry the alignment of a small model over to the model by speculative sampling."
    needs: ClassVar[frozenset[str]] = frozenset({"segments", "logits"})

    aligned: EngineLike = setting("tiny-aligned", help="Small LM, aligned by training, which generates ahead.", loads="engine")
    reference: EngineLike = setting("tiny", help="The small LM before its alignment.", loads="engine")
    lookahead: int = setting(
        4, help="Number of tokens that the small model generates per round.", at_least=1, typical=(1, 16), advanced=True
    )
    test: Test = setting("exact", help="Test of the generated tokens: exact, or one of the published ones.", advanced=True)

    def validate(self) -> None:
        check(
            self.temperature > 0,
            f"temperature must be positive, got {self.temperature}: a greedy model leaves nothing to shift.",
        )

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        aligned, reference = loaded(self.aligned), loaded(self.reference)
        request = limit_to_context(request, (engine, aligned, reference))
        shift = Shift(reference, Sampling(self.temperature), self.shifted)
        return Vanilla.stream(self, request, SpeculativeEngine(engine, aligned, self.lookahead, shift=shift), reward)

    def shifted(self, pi: Floats, pi_a: Floats, pi_s: Floats) -> tuple[Floats, Floats, Floats]:
        """Return the two probabilities whose ratio accepts a token of pi_a, and the weights of its replacement."""
        pi_s = pi_s.clip(1e-300)
        aim = pi * pi_a / pi_s
        if not aim.any():
            aim = pi
        if self.test == "paper":
            return pi, pi_s, pi_a * (pi / pi_s - 1).clip(0)
        if self.test == "repository":
            return pi, pi_a, aim
        aim = aim / aim.sum()
        return aim, pi_a, residual(aim, pi_a)
