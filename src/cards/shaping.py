"""Shaping: changes to the logits of an LM that a request asks for, before the sampling settings apply."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cards.errors import check

if TYPE_CHECKING:
    from cards.grammar import Grammar


@dataclass(frozen=True, slots=True)
class Shaping:
    """Changes to the next-token logits z of the LM, in this order:

        z(v) <- z(v) + logit_bias(v)
        z(v) <- z(v) / repetition_penalty if z(v) > 0, else z(v) * repetition_penalty     v in the prompt or the response
        z(v) <- z(v) - frequency_penalty * c(v) - presence_penalty                        v in the response, c(v) times
        z(v) <- -inf                                                                      v that the grammar does not allow

    Temperature, top_k, top_p and boundaries by entropy apply to the result. The response is all of it so far, not only the
    current segment. `repetition_penalty` None is that of the model's generation config. `logit_bias` has pairs of token id
    and bias; -inf excludes the token. Raises SettingError.
    """

    grammar: Grammar | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        ids = [token for token, _ in self.logit_bias]
        check(len(set(ids)) == len(ids), "logit_bias must have each token id once.")
        for token, bias in self.logit_bias:
            check(isinstance(token, int) and token >= 0, f"logit_bias must have token ids of at least 0, got {token!r}.")
            check(bias < math.inf, f"logit_bias must be finite or -inf for each token, got {bias} for token {token}.")
        for name in ("presence_penalty", "frequency_penalty"):
            check(math.isfinite(getattr(self, name)), f"{name} must be a finite number, got {getattr(self, name)}.")
        penalty = self.repetition_penalty
        check(penalty is None or 0 < penalty < math.inf, f"repetition_penalty must be positive, got {penalty}.")

    def __bool__(self) -> bool:
        return self != NO_SHAPING


NO_SHAPING = Shaping()
