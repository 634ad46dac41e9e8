"""Settings of a calibration: those fixed in advance, and constraints on the setting to choose."""

from __future__ import annotations

from dataclasses import dataclass

from cards.errors import check
from cards.settings import check_settings, setting

DEFAULT_COST = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRequest:
    """The settings that are fixed in advance (None: found by the calibration), and the number of measurements."""

    entropy_threshold: float | None = setting(
        None, help="Entropy threshold tau_u in nats.", at_least=0, unset="chosen from the measured entropies"
    )
    segment_tokens: float | None = setting(
        None, help="Mean number of tokens per segment.", at_least=1, unset="derived from the mean length of responses"
    )
    target: float | None = setting(None, help="Target reward r*.")
    beta: float | None = setting(None, help="Softness of the acceptance test; lower is stricter.", above=0)
    alpha: float | None = setting(
        None, help="Start of the threshold: 0 at the reward of the prompt, 1 at the target.", at_least=0, at_most=1
    )
    probes: int = setting(2, help="Number of settings to measure, with one response per prompt.", at_least=0)

    def __post_init__(self) -> None:
        check_settings(self)
        check(
            self.entropy_threshold is None or self.segment_tokens is None,
            "Give the entropy threshold or the number of tokens per segment, not both.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """Constraints on the setting to choose. Without `top` the setting with the highest reward is chosen.

    max_cost: the highest FLOPs of a response, LM and RM, over those of a plain response.
    top: the mean reward to reach is the mean over prompts of the quantile 1 - top of the plain responses. The cheapest
    setting that reaches it is chosen.
    """

    max_cost: float | None = setting(
        None,
        help="Maximum FLOPs of a response, as a multiple of plain sampling.",
        above=1,
        unset=f"{DEFAULT_COST:g} without other constraints",
    )
    top: float | None = setting(
        None,
        help="Reach the mean reward of this top share of plain responses (0.1: the best tenth) at the lowest cost.",
        above=0,
        below=1,
    )
    max_fallback: float | None = setting(
        None, help="Maximum share of segments that are fallbacks (0.02: 2%).", above=0, below=1
    )

    def __post_init__(self) -> None:
        check_settings(self)
