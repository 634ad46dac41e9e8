"""DoLa, decoding by contrasting layers (Chuang et al., ICLR 2024, arXiv 2309.03883)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from cards.engines.base import Engine
from cards.engines.mixture import Source
from cards.errors import check
from cards.methods.tokens.driver import LogitsMethod
from cards.settings import setting

if TYPE_CHECKING:
    from cards.methods.tokens.driver import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class DoLa(LogitsMethod):
    """Choose among plausible tokens by how much more likely the last layer finds them than an early layer.

        p_j  = softmax(head(hidden state after layer j)),   p = softmax(logits of the LM)
        j*   = argmax over `layers` of JSD(p, p_j)          for each token
        y_t  = argmax of log p(v) - log p_j*(v)             over the tokens with p(v) >= plausibility max p

    Of divergences within 1e-4, the first layer is taken. `high` and `low` are every second layer of the later and the earlier
    half, without the embeddings if they are also the head. Numbers are layers, 0 the embeddings. The head reads early hidden
    states without the last norm, as in the published code.
    temperature 0 takes the highest score; otherwise the token is sampled from softmax(score / temperature).

    Differs from the published code: JSD is the Jensen-Shannon divergence of the paper (the code has KL(M || p) + KL(M || p_j)
    with M the mean), and there is no repetition penalty.
    """

    name: ClassVar[str] = "dola"
    summary: ClassVar[str] = "Choose tokens that the last layer finds much more likely than an early layer."
    needs: ClassVar[frozenset[str]] = frozenset({"logits", "layers"})

    temperature: float = 0.0
    top_k: int | None = None
    layers: Literal["high", "low"] | tuple[int, ...] = setting(
        "high", help="Candidates for the early layer: the later or the earlier half, or numbers."
    )
    plausibility: float = setting(
        0.1, help="Fraction of the highest probability below which tokens are excluded.", above=0, at_most=1, typical=(0.01, 1)
    )

    def validate(self) -> None:
        check(bool(self.layers), "layers must be high, low, or at least one number.")

    def over(self, engine: Engine) -> Engine:
        return engine.contrast_layers(self.layers, self.plausibility)

    def sources(self, engine: Engine) -> Sequence[Source]:
        return ()

    def combine(self, position: int, logits: Floats, *others: Floats) -> Floats:
        return logits  # the engine of `over` contrasts the layers itself
