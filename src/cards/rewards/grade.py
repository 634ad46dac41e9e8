"""Grades: an LM rates a response or its last step with a digit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

from cards.engines.base import Engine
from cards.errors import check
from cards.events import Prompt, Response
from cards.rewards.engines import EngineReward, choice_scores, choice_tokens
from cards.rewards.self_evaluation import conversation

QUESTION = """\
Read this conversation between a user and an assistant. The last answer may be unfinished.

{conversation}

How useful and correct is the last step of the assistant's answer? Reply with a digit from 0 (useless) to 9 (perfect)."""
LEAD = "The digit is"  # the beginning of the LM's reply


class GradeReward(EngineReward):
    """The mean digit from 0 to 9, divided by 9, with which an LM rates the last step of a response.

    The mean is taken over the probabilities of the ten digits as the next token, normalised. SpecReason (arXiv 2504.07891) asks
    the same with another question. `question` contains {conversation}. It is sent as a user message if the LM has a chat
    template, else as plain text. `lead` begins the LM's reply. `model` is a name or an engine, which may be the decoder's.
    """

    kind: ClassVar[str] = "grade"
    scale = "probability"

    def __init__(
        self,
        model: str | Engine,
        *,
        question: str = QUESTION,
        lead: str = LEAD,
        target: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, target=target, **options)
        self.context = None  # the question has more tokens than the prompt and the response
        check("{conversation}" in question, "question must contain {conversation}.")
        self.question, self.lead = question, lead
        self.digits = [choice_tokens(self.model, digit) for digit in "0123456789"]
        check(all(self.digits), f"The digits must be single tokens of {self.model.name!r}. Use another model.")

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        return await asyncio.gather(*(self._rate(prompt, response) for response in responses))

    async def _rate(self, prompt: Prompt, response: Response) -> float:
        import numpy as np

        asked = self.question.replace("{conversation}", conversation(prompt, response))
        scores = np.array(await choice_scores(self.model, asked, self.lead, self.digits))
        p = np.exp(scores - np.logaddexp.reduce(scores))
        return float(p @ np.arange(10)) / 9
