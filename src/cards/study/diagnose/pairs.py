"""Preference pairs: how often the reward prefers the better answer, by how much of both it has read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cards.engines.base import Engine
from cards.errors import CardsError, PromptError
from cards.events import Message, Response
from cards.prompts import format_prompt
from cards.rewards.base import Reward
from cards.study.prompts import content, rows
from cards.study.statistics import Estimate, estimate

PARTS = (0.25, 0.5, 0.75, 1.0)
TURN = "\n\nAssistant:"


@dataclass(frozen=True, slots=True)
class PairRecord:
    prompt: str | tuple[Message, ...]
    chosen: str
    rejected: str


def read(path: Path) -> list[PairRecord]:
    """Rows with a prompt as a bench reads it, `chosen` and `rejected`, texts or messages. Raises PromptError."""
    found = []
    for number, row in enumerate(rows(path)):
        try:
            if not isinstance(row, Mapping) or not all(row.get(name) for name in ("chosen", "rejected")):
                raise PromptError("a pair needs the fields prompt, chosen and rejected.")
            found.append(PairRecord(content(row), _answer(row["chosen"]), _answer(row["rejected"])))
        except CardsError as error:
            raise PromptError(f"Pair number {number} of {str(path)!r}: {error}") from error
    if not found:
        raise PromptError(f"There are no pairs in {str(path)!r}.")
    return found


async def preferred(engine: Engine, reward: Reward, pair: PairRecord, form: str) -> list[float]:
    """For each of PARTS: 1 where the chosen answer has the higher reward, 0.5 where they are equal, else 0."""
    prompt = engine.encode(format_prompt(pair.prompt, form, engine.chats))
    answers = [engine.tokenize(text) for text in (pair.chosen, pair.rejected)]
    texts = []
    for part in PARTS:
        for text, ids in zip((pair.chosen, pair.rejected), answers, strict=True):
            whole = Response(text, tuple(ids), "stop")
            texts.append(whole if part == 1 else engine.extended(prompt, Response(), ids[: max(1, round(part * len(ids)))]))
    scores = await reward.score(prompt, texts)
    return [0.5 * (1 + (a > b) - (a < b)) for a, b in zip(scores[::2], scores[1::2], strict=True)]


def accuracies(found: list[list[float]]) -> dict[str, Estimate]:
    """By part, with intervals over pairs."""
    by_part = {}
    for part, values in zip(PARTS, zip(*found, strict=True), strict=True):
        mean = estimate((str(number), value) for number, value in enumerate(values))
        if mean is not None:
            by_part[f"{part:.0%}"] = mean
    return by_part


def _answer(found: Any) -> str:
    """The last answer in a text, or in messages."""
    if isinstance(found, list) and found and isinstance(found[-1], Mapping):
        found = found[-1].get("content")
    if not isinstance(found, str) or not found.strip():
        raise PromptError("chosen and rejected are texts, or messages that end with the answer.")
    return found.rpartition(TURN)[2] if found.startswith("\n\nHuman:") else found
