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
from cards.settings import setting

SENTENCES = Punctuation()


@dataclass(frozen=True, slots=True, kw_only=True)
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
    family: ClassVar[str] = "responses"
    summary: ClassVar[str] = "Run self-consistency whose later branches begin with steps that led to the leading answer."
    needs: ClassVar[frozenset[str]] = frozenset({"segments"})

    branches: int = setting(20, help="Responses that vote.", at_least=1, typical=(1, 40), client_at_most=64)
    window: int = setting(
        5, help="Branches drawn at once before the votes are counted.", at_least=1, typical=(1, 20), advanced=True
    )
    confidence: float = setting(
        0.8,
        help="Probability of the leading answer from which later branches begin with its steps.",
        at_least=0,
        at_most=1,
        typical=(0.5, 1),
        advanced=True,
    )
    pattern: str | None = setting(
        None,
        help="Regular expression of the final answer; the last match counts (none: ####, \\boxed{} or a number).",
        client=False,  # a regular expression may run for ever
        advanced=True,
    )
    boundary: Boundary = setting(SENTENCES, help="Rule that ends a step; it must not read logits.", advanced=True)

    def validate(self) -> None:
        check_pattern(self.pattern)
        check(
            not self.boundary.reads_logits,
            f"boundary must be one that reads text or counts tokens, such as Punctuation or Step, got {self.boundary!r}.",
        )

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
