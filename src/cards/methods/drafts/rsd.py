"""RSD, reward-guided speculative decoding (Liao et al., arXiv 2501.19324)."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import ClassVar, cast

from cards.boundaries import Boundary, Step
from cards.engines.base import Engine
from cards.errors import check
from cards.events import Accepted, Event, Proposed, Rejected, Response, Scored
from cards.methods.base import EngineLike, Request, RewardLike, Sampled, model_setting, proposals, required
from cards.methods.tokens.driver import within
from cards.rewards.base import Reward
from cards.usage import booked_as

BLANK_LINE = Step()


@dataclass(frozen=True, slots=True)
class RSD(Sampled):
    """A small model writes each step of the answer; the LM writes those over again that the reward does not like.

        s = sigmoid(r(x, y + step))      step: drawn by `draft`
        keep it if s >= threshold (delta), else take the step that the LM draws, untested

    So a step follows q_draft 1[s >= threshold] + P(s < threshold) q. `process` scores steps (None: the reward);
    its scores are taken for log-odds. A kept step's threshold is shown on the scale of r.

    Differs from the published code: end of text is honoured within a step, and a step of the LM is never scored.
    """

    name: ClassVar[str] = "rsd"

    draft: EngineLike = model_setting("engine", "tiny-draft")
    process: RewardLike | None = model_setting("reward", None)
    threshold: float = 0.7
    boundary: Boundary = BLANK_LINE
    temperature: float = 0.7
    top_k: int | None = 40
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check(0 < self.threshold < 1, f"threshold must lie in (0, 1), not {self.threshold}.")
        self.sampling  # noqa: B018  (checks its settings)

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        process = required(cast("Reward | None", self.process) or reward, self)
        draft = cast(Engine, self.draft)
        request = within(request, (engine, draft))
        least = math.log(self.threshold / (1 - self.threshold))
        response, position = Response(), 0
        while response.finish_reason is None:
            ask = replace(request.ask(response), boundary=self.boundary, sampling=self.sampling, segment=position)
            with booked_as("draft"):
                [[step]] = await proposals(draft, ask)
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
