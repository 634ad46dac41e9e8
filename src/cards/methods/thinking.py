"""Methods that begin after the thinking of a reasoning model."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import ClassVar

from cards.boundaries import Boundary
from cards.engines.base import Engine
from cards.events import Accepted, CandidateEvent, Event, Proposed, Response
from cards.methods.base import Method, Request, propose
from cards.rewards.base import Reward
from cards.rewards.thinking import Continuation
from cards.sampling import Sampling
from cards.settings import settings_of
from cards.shaping import Shaping
from cards.thinking import Markers

THINKING = 2**32  # number of the first segment of the thinking, so that it shares no random numbers with the method's segments
CHUNK = 32  # tokens of a segment of the thinking


@dataclass(frozen=True)
class Thought(Boundary):
    """End a segment of thinking with its closing marker, or as soon as the response turns out not to think."""

    maximum: int | None = CHUNK
    markers: Markers = field(default_factory=Markers)
    opened: bool = False
    before: str = ""  # the response before the segment
    reads_text: ClassVar[bool] = True

    def thinks(self, text: str) -> bool:
        return self.markers.may_think(self.before + text, self.opened)

    def ends_after(self, text: str) -> bool:
        return self.markers.closing in self.before + text or not self.thinks(text)


async def think_first(
    method: Method, request: Request, engine: Engine, reward: Reward | None, markers: Markers
) -> AsyncGenerator[Event, None]:
    """Yield the events of a response whose thinking is plainly sampled, without a test, before the method begins.

    A grammar of the request applies to what follows the thinking, which then cannot end the response.

    The method continues the prompt and the thinking, up to the rest of max_tokens. Its rewards still score the whole response
    to the prompt. A response that does not begin with thinking is left to the method from the start.
    """
    opened = markers.opened(request.prompt.text) is not None
    sampling = getattr(method, "sampling", None)
    thought, count = Response(), 0
    free = unconstrained(request.shaping, engine)
    while markers.closing not in thought.text:
        boundary = Thought(markers=markers, opened=opened, before=thought.text)
        ask = replace(
            replace(request, room=None, shaping=free).ask(thought),
            boundary=boundary,
            sampling=sampling if isinstance(sampling, Sampling) else Sampling(),
            segment=THINKING + count,
        )
        async with aclosing(propose(engine, ask)) as batches:
            [segment] = [segment async for batch in batches for segment in batch]
        if not boundary.thinks(segment.text + segment.held):
            break  # this text is left to the method
        if markers.closing in thought.text + segment.text + segment.held:  # the answer begins with its own text
            segment = replace(segment, text=segment.text + segment.held, held="")
        yield Proposed(count, 0, segment)
        yield Accepted(count, 0, segment)
        thought, count = thought + segment, count + 1
        if thought.finish_reason is not None:
            return
    async with aclosing(continue_after(thought, count, method, request, engine, reward)) as events:
        async for event in events:
            yield event


async def continue_after(
    thought: Response, count: int, method: Method, request: Request, engine: Engine, reward: Reward | None
) -> AsyncGenerator[Event, None]:
    """Yield the events of a method that continues the prompt and a response of `count` segments.

    Its rewards score the whole response to the prompt.
    """
    prompt = request.prompt
    rest = replace(request, prompt=prompt.followed_by(thought), max_tokens=request.max_tokens - len(thought.token_ids))

    def whole(reward: Reward) -> Reward:
        return Continuation(reward, prompt, thought)

    rewards = {name: getattr(method, name) for name, item in settings_of(method).items() if item.spec.loads == "reward"}
    wrapped = {name: whole(value) for name, value in rewards.items() if isinstance(value, Reward)}
    method = replace(method, **wrapped) if wrapped else method  # type: ignore[type-var]
    async with aclosing(method.stream(rest, engine, None if reward is None else whole(reward))) as events:
        async for event in events:
            if isinstance(event, Proposed) and event.parent is not None:
                event = replace(event, parent=(event.parent[0] + count, event.parent[1]))
            yield replace(event, position=event.position + count) if isinstance(event, CandidateEvent) else event


def unconstrained(shaping: Shaping, engine: Engine) -> Shaping:
    """Return the shaping without its grammar, and with the end tokens excluded if there was one."""
    if shaping.grammar is None:
        return shaping
    biases = dict(shaping.logit_bias) | dict.fromkeys(engine.end_ids, -math.inf)
    return replace(shaping, grammar=None, logit_bias=tuple(biases.items()))
