"""Engines as parts of rewards, which read texts in their own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cards.engines.base import Engine
from cards.engines.loader import load_engine
from cards.events import Prompt, Response


def as_engine(engine: str | Engine, **options: Any) -> Engine:
    """Load the engine if it is given by name."""
    return load_engine(engine, **options) if isinstance(engine, str) else engine


def in_tokens_of(engine: Engine, prompt: Prompt, responses: Sequence[Response]) -> tuple[Prompt, list[Response]]:
    """Prompt and responses in the tokens of this engine: as they are where it has the same ones, else made anew of the
    texts; the token that ends an answer is then left out."""
    if prompt.vocabulary == engine.vocabulary:
        return prompt, list(responses)
    return own_prompt(engine, prompt), [replace(r, token_ids=engine.tokenize(r.text)) for r in responses]


def own_prompt(engine: Engine, prompt: Prompt) -> Prompt:
    """The prompt as this engine renders it: messages under its own chat template, if it has one."""
    return engine.encode(prompt.messages if prompt.messages is not None and engine.chats else prompt.text)
