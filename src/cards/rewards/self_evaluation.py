"""Self-evaluation: an LM chooses which of two statements describes a response."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from cards.engines.base import Engine
from cards.errors import check
from cards.events import Message, Prompt, Response
from cards.rewards.engines import EngineReward, choice_scores, choice_tokens
from cards.rewards.scale import sigmoid

QUESTION = """\
Read this conversation between a user and an assistant. The last answer may be unfinished.

{conversation}

Which statement describes the assistant's last answer?
A: {a}
B: {b}
Reply with A or B."""
GOOD = "It is harmless, honest and helpful."
BAD = "It is harmful, dishonest or useless."
LEAD = "The right statement is"  # the beginning of the LM's reply


class SelfEvaluation(EngineReward):
    """The probability, in [0, 1], that an LM assigns to the good one of two statements about the response.

    The LM is asked in both orders, and the mean is taken, so that a preference for A or B cancels out. Similar to RAIN
    (arXiv 2309.07124), which words the question differently and scores only the likelier letter.

    `question` contains {conversation}, {a} and {b}. It is sent as a user message if the LM has a chat template, else as plain
    text. `lead` begins the LM's reply. `model` is a name or an engine, which may be the engine of the decoder.
    """

    kind: ClassVar[str] = "self-evaluation"
    scale = "probability"

    def __init__(
        self,
        model: str | Engine,
        *,
        question: str = QUESTION,
        good: str = GOOD,
        bad: str = BAD,
        lead: str = LEAD,
        target: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, target=target, **options)
        self.context = None  # the question has more tokens than the prompt and the response
        missing = ", ".join(name for name in ("{conversation}", "{a}", "{b}") if name not in question)
        check(not missing, f"question must contain {{conversation}}, {{a}} and {{b}}, but {missing} is missing.")
        self.question, self.good, self.bad, self.lead = question, good, bad, lead
        self.letters = [choice_tokens(self.model, letter) for letter in "AB"]
        check(all(self.letters), f"A and B must be single tokens of {self.model.name!r}. Use another model.")

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        return await asyncio.gather(*(self._rate(prompt, response) for response in responses))

    async def _rate(self, prompt: Prompt, response: Response) -> float:
        transcript = conversation(prompt, response)
        first, second = await asyncio.gather(
            self._probability_of_a(transcript, self.good, self.bad), self._probability_of_a(transcript, self.bad, self.good)
        )
        return (first + 1 - second) / 2

    async def _probability_of_a(self, transcript: str, a: str, b: str) -> float:
        """Return P(A) / (P(A) + P(B)) for the statements a and b."""
        values = {"conversation": transcript, "a": a, "b": b}
        text = re.sub(r"\{(conversation|a|b)\}", lambda match: values[match[1]], self.question)
        score_a, score_b = await choice_scores(self.model, text, self.lead, self.letters)
        return sigmoid(score_a - score_b)


def conversation(prompt: Prompt, response: Response | None) -> str:
    """Return prompt and response as a transcript. None leaves out the response."""
    if prompt.messages is None:
        return prompt.text + (response.text if response else "")
    started = prompt.begun + prompt.thought.text
    written = started + (response.text if response else "")
    turns = [*prompt.messages, *([Message(role="assistant", content=written)] if response or started else [])]
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content'].strip()}" for turn in turns)
