"""Rewards that contain engines: their base class, loading, and conversion to the tokens of the engine."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any, Self

from cards.engines.base import Engine
from cards.engines.loader import load_engine
from cards.engines.text import uses
from cards.errors import PromptError, RewardError
from cards.events import Message, Prompt, Response
from cards.rewards.base import Reward


class EngineReward(Reward):
    """Base class of rewards from a single LM: `model` is an engine, or a name that is loaded with `options`."""

    def __init__(self, model: str | Engine, *, target: float | None = None, **options: Any) -> None:
        self.model, self.target = as_engine(model, **options), target
        self.parts, self.context = (self.model,), self.model.context
        self.name = f"{self.kind}:{self.model.name}"

    @classmethod
    def named(cls, details: str, **options: Any) -> Self:
        """Return the reward for `NAME`, the name of an LM."""
        return cls(details, **options)

    @classmethod
    def models_in(cls, details: str) -> list[tuple[str, str]]:
        return [(details, "engine")]

    async def _counted(
        self, rating: Coroutine[Any, Any, Sequence[float]], prompt: Prompt, responses: Sequence[Response]
    ) -> list[float]:
        try:
            return await super()._counted(rating, prompt, responses)
        except PromptError as error:  # of a text that the LM cannot read
            raise RewardError(f"Reward {self.name!r} cannot read the prompt and the response. {error}") from error


def as_engine(engine: str | Engine, **options: Any) -> Engine:
    """Return the engine, loaded if it is given by name."""
    return load_engine(engine, **options) if isinstance(engine, str) else engine


def retokenize(engine: Engine, prompt: Prompt, responses: Sequence[Response]) -> tuple[Prompt, list[Response]]:
    """Return prompt and responses in the tokens of the engine.

    They are unchanged if the vocabularies are equal. Otherwise the texts are tokenized again, without the token that ends a
    response.
    """
    if prompt.vocabulary == engine.vocabulary:
        return prompt, list(responses)
    return encode_prompt(engine, prompt), [replace(r, token_ids=engine.tokenize(r.text)) for r in responses]


def encode_question(engine: Engine, text: str) -> Prompt:
    """Return a question encoded as a user message, or as plain text with a newline for an LM without a chat template."""
    return engine.encode([Message(role="user", content=text)] if engine.chats else text + "\n")


def choice_tokens(engine: Engine, text: str) -> list[int]:
    """Return the ids of the tokens that read as the text, with or without a space before it."""
    return sorted({ids[0] for form in (text, f" {text}") if len(ids := engine.tokenize(form)) == 1})


async def choice_scores(engine: Engine, question: str, lead: str, choices: Sequence[Sequence[int]]) -> list[float]:
    """Return log sum exp of the logits of the tokens of each choice, as the token after a question and the lead of a reply."""
    import numpy as np

    asked = encode_question(engine, question)
    lead = lead if asked.text[-1:].isspace() else f" {lead}"
    [logits] = await engine.logits(asked, Response(lead, engine.tokenize(lead)))
    return [float(np.logaddexp.reduce(logits[list(tokens)].astype(np.float64))) for tokens in choices]


def encode_prompt(engine: Engine, prompt: Prompt) -> Prompt:
    """Return the prompt encoded by the engine. Messages are rendered with its chat template, if it has one.

    The template gets the variables that it uses of those of the LM's template.
    """
    if prompt.messages is None or not engine.chats:
        return engine.encode(prompt.text)
    if variables := prompt.chat_template_kwargs:
        template = engine.encode(prompt.messages).template
        variables = {name: value for name, value in variables.items() if uses(template, name)}
    thought = Response(prompt.thought.text, engine.tokenize(prompt.thought.text)) if prompt.thought.text else Response()
    return engine.encode_like(replace(prompt, chat_template_kwargs=variables, thought=thought), prompt.messages)
