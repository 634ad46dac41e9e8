"""SpecReason, speculative reasoning (Pan et al., NeurIPS 2025, arXiv 2504.07891)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cards.engines.base import Engine
from cards.methods.base import loaded
from cards.methods.drafts.rsd import RSD
from cards.rewards.base import Reward
from cards.rewards.grade import GradeReward
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecReason(RSD):
    """Generate each step with a small model, and again with the LM if the LM itself grades the step too low.

        grade = mean digit from 0 to 9 with which the LM rates the step
        accept the step if grade >= 9 threshold, else take a step of the LM, ungraded

    This is RSD whose process reward is the LM itself. `process` replaces its grade. The default threshold is the paper's.

    Differs from the published code: the question is ours, and the grade is the mean over the digits, not the likeliest digit.
    """

    name: ClassVar[str] = "spec-reason"
    summary: ClassVar[str] = "Generate each step with a small model, and again with the model if its own grade is too low."
    needs: ClassVar[frozenset[str]] = frozenset({"segments", "logits"})

    threshold: float = setting(7 / 9, help="Minimum grade of a step, divided by 9, at which it is accepted.", above=0, below=1)

    def grader(self, engine: Engine, reward: Reward | None) -> Reward:
        return GradeReward(engine) if self.process is None else loaded(self.process)
