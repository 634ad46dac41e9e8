"""Accuracy on preference pairs, by the part of both responses that the reward reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cards.engines.base import Engine
from cards.errors import PromptError
from cards.events import Message, Response
from cards.prompts import ChatOptions
from cards.rewards.base import Reward
from cards.study.prompts import content, parsed, rows
from cards.study.statistics import Estimate, share

PARTS = (0.25, 0.5, 0.75, 1.0)
TURN = "\n\nAssistant:"


@dataclass(frozen=True, slots=True)
class PairRecord:
    """A prompt with a chosen and a rejected response."""

    prompt: str | tuple[Message, ...]
    chosen: str
    rejected: str


def read(path: Path) -> list[PairRecord]:
    """Read pairs: rows with a prompt, `chosen` and `rejected`, as text or messages. Raises PromptError."""
    return parsed(rows(path, "preference pairs"), _pair, "pair", str(path))


async def preferred(engine: Engine, reward: Reward, pair: PairRecord, options: ChatOptions) -> list[float]:
    """Return, for each of PARTS: 1 if the chosen response has the higher reward, 0.5 if rewards are equal, else 0."""
    prompt = engine.encode(options.prompt(pair.prompt, engine.chats))
    token_ids = [engine.tokenize(text) for text in (pair.chosen, pair.rejected)]
    texts = []
    for part in PARTS:
        for text, ids in zip((pair.chosen, pair.rejected), token_ids, strict=True):
            complete = Response(text, tuple(ids), "stop")
            texts.append(complete if part == 1 else engine.extended(prompt, Response(), ids[: max(1, round(part * len(ids)))]))
    scores = await reward.score(prompt, texts)
    return [0.5 * (1 + (a > b) - (a < b)) for a, b in zip(scores[::2], scores[1::2], strict=True)]


def accuracies(results: list[list[float]]) -> dict[str, Estimate]:
    """Return the accuracy by part, from the results of `preferred`, with intervals over pairs."""
    by_part = {}
    for part, values in zip(PARTS, zip(*results, strict=True), strict=True):
        mean = share((str(number), value) for number, value in enumerate(values))
        if mean is not None:
            by_part[f"{part:.0%}"] = mean
    return by_part


def _pair(number: int, row: Any) -> PairRecord:
    if not isinstance(row, Mapping) or not all(row.get(name) for name in ("chosen", "rejected")):
        raise PromptError("a pair needs the fields prompt, chosen and rejected.")
    return PairRecord(content(row), _response(row["chosen"]), _response(row["rejected"]))


def _response(value: Any) -> str:
    """Return the last response of a dialogue, given as text or messages."""
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        value = value[-1].get("content")
    if not isinstance(value, str) or not value.strip():
        raise PromptError("chosen and rejected must be text, or messages that end with the response.")
    return value.rpartition(TURN)[2] if value.startswith("\n\nHuman:") else value
