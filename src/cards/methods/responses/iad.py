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
from cards.methods.responses.driver import draw, rewards_of, taken
from cards.rewards.base import Reward
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class IAD(Sampled):
    """Draw n answers, show the LM the best and the worst so far with their scores, draw n more; the best of all is taken.

        iteration 1:  y ~ q(. | x)
        iteration k:  y ~ q(. | feedback(best, worst) + x)
        answer:       argmax of r(x, y) over all n * iterations

    The reward always scores an answer to x itself. The feedback stands before the last message, or before raw text; its
    answers are shortened until an answer as long as the longest so far fits behind, and left out if nothing fits.
    The paper writes prompts for each task and its verifier may be a program; our wording is general, the verifier the reward.
    """

    name: ClassVar[str] = "iad"
    family: ClassVar[str] = "responses"
    summary: ClassVar[str] = "Show the model its best and worst response so far with their rewards, and ask again."

    iterations: int = setting(
        3, help="Rounds of responses; later ones see the best and worst so far.", at_least=1, typical=(1, 10), client_at_most=16
    )
    n: int = setting(4, help="Responses of a round.", at_least=1, typical=(1, 32), client_at_most=64)

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        reward = required(reward, self)
        answers: list[Segment] = []
        for iteration in range(self.iterations):
            prompt = refined(request.prompt, answers, engine) if answers else request.prompt
            ask = replace(request.ask(Response()), prompt=prompt, sampling=self.sampling, segment=iteration, n=self.n)
            async with aclosing(draw(request.prompt, ask, engine, reward, answers)) as events:
                async for event in events:
                    yield event
        for event in taken(answers, argmax(answers), request.trace):
            yield event


def refined(prompt: Prompt, answers: Sequence[Segment], engine: Engine) -> Prompt:
    """The prompt with feedback on these answers, within the engine's context; the bare prompt where that has no room."""
    rewards = rewards_of(answers)
    best, worst = rewards.index(max(rewards)), rewards.index(min(rewards))
    shown = [("best", best)] if rewards[worst] == rewards[best] else [("best", best), ("worst", worst)]
    longest = max(len(answer.token_ids) for answer in answers)
    length = max(len(answers[i].text) for _, i in shown)
    while length:
        lines = [f"The {kind} answer so far (score {rewards[i]:.2f}): {cut(answers[i].text, length)}" for kind, i in shown]
        text = "\n".join([*lines, "Give a better answer.\n\n"])
        try:
            longer = engine.encode(before(prompt, text))
            if len(longer.token_ids) + longest <= engine.context:
                return longer
        except PromptError:  # longer than the context
            pass
        length //= 2
    return prompt


def before(prompt: Prompt, text: str) -> str | list[Message]:
    """The prompt with this text before its last message, or before all of it if it is raw."""
    if prompt.messages is None:
        return text + prompt.text
    *earlier, last = prompt.messages
    return [*earlier, Message(role=last["role"], content=text + last["content"])]


def cut(text: str, length: int) -> str:
    return text.strip() if len(text) <= length else text[:length].strip() + " ..."
