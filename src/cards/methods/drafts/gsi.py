"""GSI, guided speculative inference (Geuter et al., arXiv 2506.04118)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

from cards.boundaries import Boundary, Step
from cards.engines.base import Ask, Engine
from cards.errors import check
from cards.events import Accepted, Event, Proposed, Rejected, Response, Scored, Segment
from cards.methods.base import EngineLike, Method, Request, RewardLike, model_setting, proposals, required
from cards.methods.tokens.driver import within
from cards.rewards.base import Reward
from cards.rewards.process import sigmoid
from cards.sampling import CHOICE, Sampling, pick, uniforms
from cards.usage import Role, booked_as, in_role

BLANK_LINE = Step()


@dataclass(frozen=True, slots=True)
class GSI(Method):
    """Soft best-of-n of each step, the steps drawn by a small model and weighed as if the LM had drawn them.

        draw n steps from pi_S, rho_i = s_i + (log pi_B(step_i) - log pi_S(step_i)) / beta, s = sigmoid(r)
        pick i with probability in proportion to exp(beta rho_i); keep it if rho_i >= threshold (u), else
        draw n steps from pi_B and pick one of them with probability in proportion to exp(beta s_i)

    pi_B: the LM, pi_S: `draft`. Both aim at pi_B(step) exp(beta s), normalised. `process` scores steps (None: the reward); its
    scores are taken for log-odds. Steps are drawn at temperature 1 from the whole vocabulary, the law whose
    log-probabilities engines give; a cut vocabulary could make the ratio infinite.
    """

    name: ClassVar[str] = "gsi"
    needs: ClassVar[frozenset[str]] = frozenset({"segments", "logprobs", "reward"})

    draft: EngineLike = model_setting("engine", "tiny-draft")
    process: RewardLike | None = model_setting("reward", None)
    n: int = 4
    beta: float = 20.0
    threshold: float = 0.5
    boundary: Boundary = BLANK_LINE

    def __post_init__(self) -> None:
        check(self.n >= 1, f"n must be at least 1, not {self.n}.")
        check(0 < self.beta < math.inf, f"beta must be positive, not {self.beta}.")
        check(math.isfinite(self.threshold), f"threshold must be a finite number, not {self.threshold}.")

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        import numpy as np

        process = required(cast("Reward | None", self.process) or reward, self)
        draft = cast(Engine, self.draft)
        request = within(request, (engine, draft))
        response, position = Response(), 0
        while response.finish_reason is None:
            ask = replace(request.ask(response), boundary=self.boundary, sampling=Sampling(), segment=position, n=self.n)
            u = uniforms(request.seed, position, 0, 2, CHOICE)
            steps: list[Segment] = []
            sources: Sequence[tuple[Role, Engine]] = (("draft", draft), ("lm", engine))
            for (role, source), place in zip(sources, u, strict=True):
                first = len(steps)
                with booked_as(role):
                    [found] = await proposals(source, replace(ask, first=first))
                drawn, tilts = await self.weighed(ask, found, source, engine, process)
                for i, step in enumerate(drawn, first):
                    yield Proposed(position, i, replace(step, reward=None), role)
                    yield Scored(position, i, step)
                steps += drawn
                best = max(tilts)  # -inf where the LM would write none of them
                chosen = pick(np.exp(self.beta * (np.array(tilts) - best)), float(place)) if best > -math.inf else 0
                kept = first > 0 or tilts[chosen] >= self.threshold
                chosen += first
                for i, step in enumerate(drawn, first):
                    if not (kept and i == chosen):
                        yield Rejected(position, i, step)
                if kept:
                    break
            rejected = tuple(step for i, step in enumerate(steps) if i != chosen) if request.trace else ()
            yield Accepted(position, chosen, replace(steps[chosen], candidates=len(steps), rejected=rejected))
            response = response + steps[chosen]
            position += 1

    async def weighed(
        self, ask: Ask, steps: Sequence[Segment], source: Engine, engine: Engine, process: Reward
    ) -> tuple[list[Segment], list[float]]:
        """The steps, drawn by `source`, with their rewards r, and their rho."""
        answers = [ask.response + step for step in steps]

        async def gain(answer: Response, step: Segment) -> float:
            if source is engine:
                return 0.0
            last = len(step.token_ids)
            drafts = in_role("draft", source.logprobs(ask.prompt, answer, last))
            ours, theirs = await asyncio.gather(engine.logprobs(ask.prompt, answer, last), drafts)
            return float(ours.sum() - theirs.sum())

        rewards, gains = await asyncio.gather(process.score(ask.prompt, answers), asyncio.gather(*map(gain, answers, steps)))
        tilts = [sigmoid(r) + g / self.beta for r, g in zip(rewards, gains, strict=True)]
        return [replace(step, reward=r) for step, r in zip(steps, rewards, strict=True)], tilts
