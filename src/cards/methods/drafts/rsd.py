"""RSD, reward-guided speculative decoding (Liao et al., arXiv 2501.19324)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import ClassVar

from cards.boundaries import Boundary, Step
from cards.engines.base import Engine
from cards.events import Accepted, Event, Proposed, Rejected, Response, Scored
from cards.methods.base import EngineLike, Request, RewardLike, Sampled, loaded, propose_all, required
from cards.methods.tokens.driver import limit_to_context
from cards.rewards.base import Reward
from cards.rewards.scale import from_probability
from cards.settings import setting
from cards.usage import booked_as

BLANK_LINE = Step()


@dataclass(frozen=True, slots=True, kw_only=True)
class RSD(Sampled):
    """Generate each step with a small model, and again with the LM if the reward of the step is too low.

        s = r(x, y + step) as a probability,   step ~ proposer
        accept the step if s >= threshold (delta), else take a step of the LM, unscored

    A step follows q_proposer 1[s >= threshold] + P(s < threshold) q. `process` scores steps; without it the reward does. s is
    the score itself if its scale is `probability`, else its sigmoid. Events show the threshold on the scale of r.

    Differs from the published code: the end-of-text token is respected within a step.
    """

    name: ClassVar[str] = "rsd"
    family: ClassVar[str] = "drafts"
    tests: ClassVar[bool] = True
    summary: ClassVar[str] = "Generate each step with a small model, and again with the model if its reward is too low."
    siblings: ClassVar[bool] = True

    proposer: EngineLike = setting(
        "tiny-draft", help="Smaller LM with the same tokenizer, which generates the steps.", loads="engine"
    )
    process: RewardLike | None = setting(None, help="Reward model that scores steps (none: the reward).", loads="reward")
    threshold: float = setting(0.7, help="Minimum probability of a step at which it is accepted.", above=0, below=1)
    boundary: Boundary = setting(BLANK_LINE, help="Rule that ends a step.", advanced=True)

    def grader(self, engine: Engine, reward: Reward | None) -> Reward:
        """Return the reward that scores the steps."""
        return required(reward if self.process is None else loaded(self.process), self)

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        process = self.grader(engine, reward)
        proposer = loaded(self.proposer)
        request = limit_to_context(request, (engine, proposer))
        minimum = from_probability(self.threshold, process.scale)
        response, index = Response(), 0
        while response.finish_reason is None:
            ask = replace(request.ask(response), boundary=self.boundary, sampling=self.sampling, segment=index)
            with booked_as("draft"):
                [[step]] = await propose_all(proposer, ask)
            yield Proposed(index, 0, step, "draft")
            [r] = await process.score(request.prompt, [response + step])
            step = replace(step, reward=r, threshold=minimum)
            yield Scored(index, 0, step)
            if r >= minimum:
                yield Accepted(index, 0, step)
            else:
                yield Rejected(index, 0, step)
                rejected = (step,) if request.trace else ()
                [[step]] = await propose_all(engine, replace(ask, first=1))  # other random numbers than the rejected step
                yield Proposed(index, 1, step)
                yield Accepted(index, 1, replace(step, candidates=2, rejected=rejected))
            response = response + step
            index += 1
