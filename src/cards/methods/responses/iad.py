"""Iterative agent decoding (Chakraborty et al., arXiv 2504.01931)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import ClassVar

from cards.engines.base import Engine
from cards.errors import PromptError
from cards.events import Event, Message, Prompt, Response, Segment
from cards.methods.base import Request, Sampled, argmax, required
from cards.methods.responses.driver import propose_responses, rewards_of, verdicts
from cards.rewards.base import Reward
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class IAD(Sampled):
    """Sample n responses, show the LM the best and the worst so far with their scores, and sample n more.

        iteration 1:  y ~ q(. | x), n times
        iteration k:  y ~ q(. | feedback(best, worst) + x), n times
        response:     argmax of r(x, y) over all n * iterations responses

    The reward scores every response as a response to x. The feedback stands before the last message, or before a raw text.
    Its two responses are shortened until a response as long as the longest so far fits into the context. If nothing fits, the
    bare prompt is used. The paper has a feedback text for each task, and its verifier may be a program; our text is general,
    and the verifier is the reward.
    """

    name: ClassVar[str] = "iad"
    family: ClassVar[str] = "responses"
    whole: ClassVar[bool] = True
    summary: ClassVar[str] = "Show the model its best and worst response so far with their rewards, and ask again."

    iterations: int = setting(
        3,
        help="Number of rounds; later ones see the best and worst response so far.",
        at_least=1,
        typical=(1, 10),
        client_at_most=16,
    )
    n: int = setting(4, help="Number of responses per round.", at_least=1, typical=(1, 32), client_at_most=64)

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        reward = required(reward, self)
        candidates: list[Segment] = []
        for iteration in range(self.iterations):
            prompt = add_feedback(request.prompt, candidates, engine) if candidates else request.prompt
            ask = replace(request.ask(Response()), prompt=prompt, sampling=self.sampling, segment=iteration, n=self.n)
            async with aclosing(propose_responses(request.prompt, ask, engine, reward, candidates)) as events:
                async for event in events:
                    yield event
        for event in verdicts(candidates, argmax(candidates), request.trace):
            yield event


def add_feedback(prompt: Prompt, candidates: Sequence[Segment], engine: Engine) -> Prompt:
    """Return the prompt with feedback on these candidates, or the bare prompt if the feedback does not fit the context."""
    rewards = rewards_of(candidates)
    best, worst = rewards.index(max(rewards)), rewards.index(min(rewards))
    shown = [("best", best)] if rewards[worst] == rewards[best] else [("best", best), ("worst", worst)]
    longest = max(len(candidate.token_ids) for candidate in candidates)
    length = max(len(candidates[i].text) for _, i in shown)
    while length:
        lines = [
            f"The {kind} answer so far (score {rewards[i]:.2f}): {shorten(candidates[i].text, length)}" for kind, i in shown
        ]
        text = "\n".join([*lines, "Give a better answer.\n\n"])
        try:
            longer = engine.encode_like(prompt, prepend(prompt, text))
            if len(longer.token_ids) + longest <= engine.context:
                return longer
        except PromptError:  # longer than the context
            pass
        length //= 2
    return prompt


def prepend(prompt: Prompt, text: str) -> str | Sequence[Message]:
    """Return the raw text or the messages of the prompt with the text before its last message, or at its start if it is raw."""
    if prompt.messages is None:
        return text + prompt.bare.text
    *earlier, last = prompt.messages
    return [*earlier, Message(role=last["role"], content=text + last["content"])]


def shorten(text: str, length: int) -> str:
    """Return at most `length` characters of a text, marked if it is longer."""
    return text.strip() if len(text) <= length else text[:length].strip() + " ..."
