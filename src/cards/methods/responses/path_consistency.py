"""Path-consistency (Zhu et al., arXiv 2409.01281)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from math import comb
from typing import ClassVar

from cards.boundaries import Boundary, Punctuation
from cards.engines.base import Engine
from cards.errors import check
from cards.events import Event, Response, Segment
from cards.methods.base import Request, Sampled
from cards.methods.responses.driver import draw, taken
from cards.methods.responses.self_consistency import check_pattern, final_answer, leader
from cards.rewards.base import Reward

SENTENCES = Punctuation()


@dataclass(frozen=True, slots=True)
class PathConsistency(Sampled):
    """Self-consistency in windows: once a final answer leads clearly, later branches begin with steps that led to it.

        v1, v2:     votes of the two commonest final answers among all branches so far
        confidence = P(p > 1/2), p ~ Beta(v1 + 1, v2 + 1)
        confidence >= `confidence`: of the last window take the first branch with the leading answer; what all branches
        after it begin with grows by that branch's next step

    A majority vote over all `branches` decides. `boundary` cuts the steps; `pattern` is that of self-consistency.
    Where we choose for ourselves: votes are counted over all windows; the prefix never shrinks, and stays as it is where no
    branch of the window has the leading answer or the next step is the branch's last, which is always drawn anew.
    """

    name: ClassVar[str] = "path-consistency"
    needs: ClassVar[frozenset[str]] = frozenset({"segments"})

    branches: int = 20
    window: int = 5
    confidence: float = 0.8
    pattern: str | None = None
    boundary: Boundary = SENTENCES
    temperature: float = 0.7
    top_k: int | None = 40
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check(self.branches >= 1, f"branches must be at least 1, not {self.branches}.")
        check(self.window >= 1, f"window must be at least 1, not {self.window}.")
        check(0 <= self.confidence <= 1, f"confidence must lie in [0, 1], not {self.confidence}.")
        check_pattern(self.pattern)
        check(
            isinstance(self.boundary, Boundary) and not self.boundary.reads_logits,
            f"boundary must be one that reads text or counts tokens, such as Punctuation or Step, not {self.boundary!r}.",
        )
        self.sampling  # noqa: B018  (checks its settings)

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        answers: list[Segment] = []
        finals: list[str | None] = []
        prefix = Response()
        while (first := len(answers)) < self.branches:
            n = min(self.window, self.branches - first)
            ask = replace(request.ask(prefix), sampling=self.sampling, first=first, n=n)
            async with aclosing(draw(request.prompt, ask, engine, None, answers)) as events:
                async for event in events:
                    yield event
            finals += [final_answer(answer.text, self.pattern) for answer in answers[first:]]
            winner = leader(finals, [1.0] * len(finals))
            if winner is not None and winner in finals[first:] and lead(finals) >= self.confidence:
                prefix = self.extended(prefix, answers[finals.index(winner, first)], request, engine)
        chosen = finals.index(winner) if winner is not None else 0
        for event in taken(answers, chosen, request.trace):
            yield event

    def extended(self, prefix: Response, branch: Segment, request: Request, engine: Engine) -> Response:
        """The prefix with the branch's next step, or the prefix if that step is the branch's last."""
        writer = engine.writer(replace(request.ask(prefix), boundary=self.boundary))
        for token in branch.token_ids[len(prefix.token_ids) :]:
            writer.push(token)
            if writer.segment is not None:
                longer = prefix + writer.segment
                return longer if branch.text[len(longer.text) :].strip() else prefix
        return prefix


def lead(finals: Sequence[str | None]) -> float:
    """P(p > 1/2), p ~ Beta(v1 + 1, v2 + 1): a binomial tail, as v1 and v2 are whole numbers."""
    votes = sorted((finals.count(final) for final in set(finals) - {None}), reverse=True)
    v1, v2 = [*votes, 0, 0][:2]
    tosses = v1 + v2 + 1
    return sum(comb(tosses, k) for k in range(v1 + 1)) / (1 << tosses)
