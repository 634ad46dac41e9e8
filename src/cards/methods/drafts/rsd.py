"""RSD, reward-guided speculative decoding (Liao et al., arXiv 2501.19324)."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import ClassVar

from cards.boundaries import Boundary, Step
from cards.engines.base import Engine
from cards.events import Accepted, Event, Proposed, Rejected, Response, Scored
from cards.methods.base import EngineLike, Request, RewardLike, Sampled, loaded, proposals, required
from cards.methods.tokens.driver import within
from cards.rewards.base import Reward
from cards.settings import setting
from cards.usage import booked_as

BLANK_LINE = Step()


@dataclass(frozen=True, slots=True, kw_only=True)
class RSD(Sampled):
    """A small model writes each step of the answer; the LM writes those over again that the reward does not like.

        s = sigmoid(r(x, y + step))      step: drawn by `proposer`
        keep it if s >= threshold (delta), else take the step that the LM draws, untested

    So a step follows q_proposer 1[s >= threshold] + P(s < threshold) q. `process` scores steps (None: the reward);
    its scores are taken for log-odds. A kept step's threshold is shown on the scale of r.

    Differs from the published code: end of text is honoured within a step, and a step of the LM is never scored.
    """

    name: ClassVar[str] = "rsd"
    family: ClassVar[str] = "drafts"
    summary: ClassVar[str] = "Generate each step with a small model, and again with the model if its reward is too low."
    siblings: ClassVar[bool] = True

    proposer: EngineLike = setting("tiny-draft", help="Smaller LM of the same tokenizer that writes the steps.", loads="engine")
    process: RewardLike | None = setting(None, help="Reward model that scores steps (none: the reward).", loads="reward")
    threshold: float = setting(0.7, help="Sigmoid of the reward from which a step is kept.", above=0, below=1)
    boundary: Boundary = setting(BLANK_LINE, help="Rule that ends a step.", advanced=True)

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        process = required(reward if self.process is None else loaded(self.process), self)
        proposer = loaded(self.proposer)
        request = within(request, (engine, proposer))
        least = math.log(self.threshold / (1 - self.threshold))
        response, position = Response(), 0
        while response.finish_reason is None:
            ask = replace(request.ask(response), boundary=self.boundary, sampling=self.sampling, segment=position)
            with booked_as("draft"):
                [[step]] = await proposals(proposer, ask)
            yield Proposed(position, 0, step, "draft")
            [r] = await process.score(request.prompt, [response + step])
            step = replace(step, reward=r, threshold=least)
            yield Scored(position, 0, step)
            if r >= least:
                yield Accepted(position, 0, step)
            else:
                yield Rejected(position, 0, step)
                refused = (step,) if request.trace else ()
                [[step]] = await proposals(engine, replace(ask, first=1))  # random numbers of its own
                yield Proposed(position, 1, step)
                yield Accepted(position, 1, replace(step, candidates=2, rejected=refused))
            response = response + step
            position += 1
