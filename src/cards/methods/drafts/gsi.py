"""GSI, guided speculative inference (Geuter et al., arXiv 2506.04118)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from cards.boundaries import Boundary, Step
from cards.engines.base import Ask, Engine
from cards.events import Accepted, Event, Proposed, Rejected, Response, Scored, Segment
from cards.methods.base import EngineLike, Method, Request, RewardLike, loaded, proposals, required
from cards.methods.tokens.driver import within
from cards.rewards.base import Reward
from cards.rewards.process import sigmoid
from cards.sampling import CHOICE, Sampling, pick, uniforms
from cards.settings import setting
from cards.usage import Role, booked_as, in_role

BLANK_LINE = Step()


@dataclass(frozen=True, slots=True, kw_only=True)
class GSI(Method):
    """Soft best-of-n of each step, the steps drawn by a small model and weighed as if the LM had drawn them.

        draw n steps from pi_S, rho_i = s_i + (log pi_B(step_i) - log pi_S(step_i)) / beta, s = sigmoid(r)
        pick i with probability in proportion to exp(beta rho_i); keep it if rho_i >= threshold (u), else
        draw n steps from pi_B and pick one of them with probability in proportion to exp(beta s_i)

    pi_B: the LM, pi_S: `proposer`. Both aim at pi_B(step) exp(beta s), normalised. `process` scores steps (None: the
    reward); its scores are taken for log-odds. Steps are drawn at temperature 1 from the whole vocabulary, the law whose
    log-probabilities engines give; a cut vocabulary could make the ratio infinite.
    """

    name: ClassVar[str] = "gsi"
    family: ClassVar[str] = "drafts"
    summary: ClassVar[str] = "Choose among the steps of a small model by reward and by likelihood under the model."
    needs: ClassVar[frozenset[str]] = frozenset({"segments", "logprobs", "reward"})
    siblings: ClassVar[bool] = True

    proposer: EngineLike = setting("tiny-draft", help="Smaller LM of the same tokenizer that writes the steps.", loads="engine")
    process: RewardLike | None = setting(None, help="Reward model that scores steps (none: the reward).", loads="reward")
    n: int = setting(4, help="Candidates of a step.", at_least=1, typical=(1, 32), client_at_most=64)
    beta: float = setting(20.0, help="Weight of the reward in the choice; higher is stricter.", above=0, typical=(0.5, 50))
    threshold: float = setting(0.5, help="Tilted reward from which the chosen step is kept.", typical=(0, 1))
    boundary: Boundary = setting(BLANK_LINE, help="Rule that ends a step.", advanced=True)

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        import numpy as np

        process = required(reward if self.process is None else loaded(self.process), self)
        proposer = loaded(self.proposer)
        request = within(request, (engine, proposer))
        response, position = Response(), 0
        while response.finish_reason is None:
            ask = replace(request.ask(response), boundary=self.boundary, sampling=Sampling(), segment=position, n=self.n)
            u = uniforms(request.seed, position, 0, 2, CHOICE)
            steps: list[Segment] = []
            sources: Sequence[tuple[Role, Engine]] = (("draft", proposer), ("lm", engine))
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
            drafts = in_role("draft", source.logprobs, ask.prompt, answer, last)
            ours, theirs = await asyncio.gather(engine.logprobs(ask.prompt, answer, last), drafts)
            return float(ours.sum() - theirs.sum())

        rewards, gains = await asyncio.gather(process.score(ask.prompt, answers), asyncio.gather(*map(gain, answers, steps)))
        tilts = [sigmoid(r) + g / self.beta for r, g in zip(rewards, gains, strict=True)]
        return [replace(step, reward=r) for step, r in zip(steps, rewards, strict=True)], tilts
