"""Adaptive-consistency: self-consistency that stops when the leading answer is certain (Aggarwal et al., arXiv 2305.11860)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import ClassVar

from cards.engines.base import Engine
from cards.events import Event, Response, Segment
from cards.methods.base import Request, Sampled
from cards.methods.responses.driver import propose_responses, verdicts
from cards.methods.responses.path_consistency import confidence_of
from cards.methods.responses.self_consistency import answer_pattern, check_pattern, final_answer, leading_answer
from cards.rewards.base import Reward
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveConsistency(Sampled):
    """Sample responses until the most frequent final answer is probably the most frequent one of the LM.

        after each `window` responses, with v1, v2 votes of the two most frequent final answers:
            stop if P(p > 1/2) >= confidence,  p ~ Beta(v1 + 1, v2 + 1)

    At most n responses are sampled. The first one with the most frequent final answer is returned. `pattern` is that of
    self-consistency. Responses without a final answer have no vote.
    """

    name: ClassVar[str] = "adaptive-consistency"
    family: ClassVar[str] = "responses"
    whole: ClassVar[bool] = True
    summary: ClassVar[str] = "Run self-consistency until the leading answer is certain enough."
    needs: ClassVar[frozenset[str]] = frozenset({"segments"})

    n: int = setting(40, help="Maximum number of responses.", at_least=1, typical=(1, 40), client_at_most=64)
    confidence: float = setting(
        0.95, help="Minimum probability that the leading answer wins.", above=0, at_most=1, typical=(0.5, 1)
    )
    window: int = setting(1, help="Number of responses sampled between tests.", at_least=1, typical=(1, 16), advanced=True)
    pattern: str | None = answer_pattern()

    def validate(self) -> None:
        check_pattern(self.pattern)

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        candidates: list[Segment] = []
        finals: list[str | None] = []
        while not finals or (len(finals) < self.n and confidence_of(finals) < self.confidence):
            n = min(self.window, self.n - len(finals))
            ask = replace(request.ask(Response()), sampling=self.sampling, first=len(finals), n=n)
            async with aclosing(propose_responses(request.prompt, ask, engine, None, candidates)) as events:
                async for event in events:
                    yield event
            finals += [final_answer(candidate.text, self.pattern) for candidate in candidates[len(finals) :]]
        winner = leading_answer(finals, [1.0] * len(finals))
        for event in verdicts(candidates, 0 if winner is None else finals.index(winner), request.trace):
            yield event
