"""A small LM and a reward that prefers one of its letters, with prompts that differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cards.engines.mock import MockEngine
from cards.rewards.function import FunctionReward
from cards.study.calibrate.run import Calibration
from cards.study.calibrate.samples import SamplingPlan
from cards.study.journal import Journal
from cards.study.models import Models
from cards.study.prompts import PromptRecord
from cards.study.session import Session

LETTERS = ["</s>", "a", "b", "c", "d"]
MAX_TOKENS = 12


def chances(ids: tuple[int, ...]) -> list[float]:
    """Return next-letter probabilities, sharp or flat depending on the text so far."""
    first = ids[0] if ids else 1
    sure = 1 + (3 * (ids[-1] if ids else 0) + first) % 4
    return [0.06] + [0.7 if letter == sure and len(ids) % 2 else 0.235 if len(ids) % 2 == 0 else 0.08 for letter in range(1, 5)]


async def likes_b(prompt: str, response: str) -> float:
    return response.count("b") - 0.5 * response.count("c") + 0.1 * len(prompt)


def calibration(folder: Path, prompts: int = 12, **sizes: Any) -> Calibration:
    engine, reward = MockEngine(chances, LETTERS, end="</s>"), FunctionReward(likes_b)
    records = [PromptRecord(n, str(n), "abcd"[n % 4] + "abcd"[n // 4 % 4] * (n % 3)) for n in range(prompts)]
    plan = SamplingPlan(form="raw", temperature=1.0, top_k=None, max_tokens=MAX_TOKENS, **sizes)
    session = Session(Journal.open(folder / "p.samples.jsonl", {"made": "here"}))
    return Calibration(Models(engine, reward), reward, records, plan, session)
