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
from cards.methods.responses.driver import propose_responses, verdicts
from cards.methods.responses.self_consistency import answer_pattern, check_pattern, final_answer, leading_answer
from cards.rewards.base import Reward
from cards.settings import setting

SENTENCES = Punctuation()


@dataclass(frozen=True, slots=True, kw_only=True)
class PathConsistency(Sampled):
    """Self-consistency in windows; later branches begin with the first steps of a branch with the leading answer.

        v1, v2 = votes of the two most frequent final answers among all branches so far
        c      = P(p > 1/2),  p ~ Beta(v1 + 1, v2 + 1)
        after each window, if c >= confidence: the first branch of this window with the leading answer adds its next step to
        the prefix, with which all later branches begin

    A majority vote over all `branches` decides. `boundary` ends the steps; `pattern` is that of self-consistency.
    Our choices: votes are counted over all windows, and the prefix never shrinks. It stays as it is if no branch of the window
    has the leading answer. The last step of a branch is never added.
    """

    name: ClassVar[str] = "path-consistency"
    family: ClassVar[str] = "responses"
    summary: ClassVar[str] = "Run self-consistency whose later branches begin with steps that led to the leading answer."
    needs: ClassVar[frozenset[str]] = frozenset({"segments"})

    branches: int = setting(20, help="Number of responses that vote.", at_least=1, typical=(1, 40), client_at_most=64)
    window: int = setting(
        5, help="Number of branches sampled between counts of the votes.", at_least=1, typical=(1, 20), advanced=True
    )
    confidence: float = setting(
        0.8,
        help="Minimum probability that the leading answer wins for the prefix to grow.",
        at_least=0,
        at_most=1,
        typical=(0.5, 1),
        advanced=True,
    )
    pattern: str | None = answer_pattern()
    boundary: Boundary = setting(SENTENCES, help="Rule that ends a step; it must not read logits.", advanced=True)

    def validate(self) -> None:
        check_pattern(self.pattern)
        check(
            not self.boundary.reads_logits,
            f"boundary must read text or count tokens, as Punctuation and Step do, got {self.boundary!r}.",
        )

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        candidates: list[Segment] = []
        finals: list[str | None] = []
        prefix = Response()
        while (first := len(candidates)) < self.branches:
            n = min(self.window, self.branches - first)
            ask = replace(request.ask(prefix), sampling=self.sampling, first=first, n=n)
            async with aclosing(propose_responses(request.prompt, ask, engine, None, candidates)) as events:
                async for event in events:
                    yield event
            finals += [final_answer(candidate.text, self.pattern) for candidate in candidates[first:]]
            winner = leading_answer(finals, [1.0] * len(finals))
            if winner is not None and winner in finals[first:] and confidence_of(finals) >= self.confidence:
                prefix = self.extend(prefix, candidates[finals.index(winner, first)], request, engine)
        chosen = finals.index(winner) if winner is not None else 0
        for event in verdicts(candidates, chosen, request.trace):
            yield event

    def extend(self, prefix: Response, branch: Segment, request: Request, engine: Engine) -> Response:
        """Return the prefix with the next step of the branch, or the prefix if that step is the last."""
        writer = engine.writer(replace(request.ask(prefix), boundary=self.boundary))
        for token in branch.token_ids[len(prefix.token_ids) :]:
            writer.push(token)
            if writer.segment is not None:
                longer = prefix + writer.segment
                return longer if branch.text[len(longer.decoded.text) :].strip() else prefix
        return prefix


def confidence_of(finals: Sequence[str | None]) -> float:
    """Return P(p > 1/2), p ~ Beta(v1 + 1, v2 + 1), as a binomial tail, because v1 and v2 are whole numbers."""
    votes = sorted((finals.count(final) for final in set(finals) - {None}), reverse=True)
    v1, v2 = [*votes, 0, 0][:2]
    trials = v1 + v2 + 1
    return sum(comb(trials, k) for k in range(v1 + 1)) / (1 << trials)
