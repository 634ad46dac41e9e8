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
from cards.methods.base import EngineLike, Method, Request, RewardLike, loaded, propose_all, required
from cards.methods.tokens.driver import limit_to_context, proposal_logprobs
from cards.rewards.base import Reward
from cards.rewards.scale import to_probability
from cards.sampling import CHOICE, Sampling, pick, uniforms
from cards.settings import setting
from cards.usage import Role, booked_as, in_role

BLANK_LINE = Step()


@dataclass(frozen=True, slots=True, kw_only=True)
class GSI(Method):
    """Soft best-of-n over steps of a small model, weighted as if the LM had generated them.

        sample n steps from pi_S, rho_i = s_i + (log pi_B(step_i) - log pi_S(step_i)) / beta
        pick i with probability proportional to exp(beta rho_i); accept it if rho_i >= threshold (u in the paper), else
        sample n steps from pi_B, and pick i with probability proportional to exp(beta s_i)

    pi_B is the LM, pi_S the `proposer`, both at `temperature`, and s is r(x, y + step) as a probability. Both rules aim at
    pi_B(step) exp(beta s), normalized. `process` scores steps; without it the reward does. s is the score itself if its scale
    is `probability`, else its sigmoid. Steps are sampled from the whole vocabulary, as in the published code: with a truncated
    one the ratio could be infinite.
    """

    name: ClassVar[str] = "gsi"
    family: ClassVar[str] = "drafts"
    tests: ClassVar[bool] = True
    summary: ClassVar[str] = "Choose among the steps of a small model by reward and by likelihood under the model."
    needs: ClassVar[frozenset[str]] = frozenset({"segments", "logprobs", "reward"})
    siblings: ClassVar[bool] = True

    proposer: EngineLike = setting(
        "tiny-draft", help="Smaller LM with the same tokenizer, which generates the steps.", loads="engine"
    )
    process: RewardLike | None = setting(None, help="Reward model that scores steps (none: the reward).", loads="reward")
    n: int = setting(4, help="Number of candidates per step.", at_least=1, typical=(1, 32), client_at_most=64)
    beta: float = setting(
        20.0, help="Weight of the reward in the choice of a step; higher is stricter.", above=0, typical=(0.5, 50)
    )
    threshold: float = setting(0.5, help="Minimum tilted reward rho at which the chosen step is accepted.", typical=(0, 1))
    temperature: float = setting(0.7, help="Temperature of both models.", above=0, typical=(0.1, 2))
    boundary: Boundary = setting(BLANK_LINE, help="Rule that ends a step.", advanced=True)

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        import numpy as np

        process = required(reward if self.process is None else loaded(self.process), self)
        proposer = loaded(self.proposer)
        request = limit_to_context(request, (engine, proposer))
        response, index = Response(), 0
        while response.finish_reason is None:
            ask = replace(
                request.ask(response), boundary=self.boundary, sampling=Sampling(self.temperature), segment=index, n=self.n
            )
            u = uniforms(request.seed, index, 0, 2, CHOICE)
            steps: list[Segment] = []
            sources: Sequence[tuple[Role, Engine]] = (("draft", proposer), ("lm", engine))
            for (role, source), point in zip(sources, u, strict=True):
                first = len(steps)
                with booked_as(role):
                    [proposed] = await propose_all(source, replace(ask, first=first))
                scored, tilts = await self.score_steps(ask, proposed, source, engine, process)
                for i, step in enumerate(scored, first):
                    yield Proposed(index, i, replace(step, reward=None), role)
                    yield Scored(index, i, step)
                steps += scored
                best = max(tilts)  # -inf if the LM gives all of them probability zero
                chosen = pick(np.exp(self.beta * (np.array(tilts) - best)), float(point)) if best > -math.inf else 0
                accepted = first > 0 or tilts[chosen] >= self.threshold
                chosen += first
                for i, step in enumerate(scored, first):
                    if not (accepted and i == chosen):
                        yield Rejected(index, i, step)
                if accepted:
                    break
            rejected = tuple(step for i, step in enumerate(steps) if i != chosen) if request.trace else ()
            yield Accepted(index, chosen, replace(steps[chosen], candidates=len(steps), rejected=rejected))
            response = response + steps[chosen]
            index += 1

    async def score_steps(
        self, ask: Ask, steps: Sequence[Segment], source: Engine, engine: Engine, process: Reward
    ) -> tuple[list[Segment], list[float]]:
        """Return the steps of `source` with their rewards r, and their tilted rewards rho."""
        responses = [ask.response + step for step in steps]

        async def log_ratio(response: Response, step: Segment) -> float:
            if source is engine:
                return 0.0
            last = len(step.token_ids)
            of_draft = in_role("draft", proposal_logprobs, source, ask, response, last, self.temperature)
            target, draft = await asyncio.gather(proposal_logprobs(engine, ask, response, last, self.temperature), of_draft)
            return float(target.sum() - draft.sum())

        log_ratios = asyncio.gather(*map(log_ratio, responses, steps))
        rewards, ratios = await asyncio.gather(process.score(ask.prompt, responses), log_ratios)
        tilts = [to_probability(r, process.scale) + ratio / self.beta for r, ratio in zip(rewards, ratios, strict=True)]
        return [replace(step, reward=r) for step, r in zip(steps, rewards, strict=True)], tilts
