"""Runs a bench: every method, with each of its settings, on every prompt and seed that the results lack."""

from __future__ import annotations

import platform
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import cards
from cards.decoder import PromptLike
from cards.errors import CardsError
from cards.events import Response
from cards.progress import together
from cards.study.bench.plan import Arm, Plan
from cards.study.bench.results import Results, Row, key
from cards.study.models import Models
from cards.study.prompts import Question, sample, shaped

REPETITION = 1_000_000  # between the seeds of two repetitions of a prompt


def header(plan: Plan, models: Models) -> dict[str, Any]:
    """What results have in common; others cannot be added to them."""
    import torch

    same = ("prompts", "form", "max_tokens", "stop", "concurrency", "device", "dtype", "slots", "context")
    return {
        "model": models.engine.name,
        "reward": models.reward.name if models.reward else "none",
        "gold": models.gold.name if models.gold else "none",
        **{name: list(value) if isinstance(value := getattr(plan, name), tuple) else value for name in same},
        "versions": {"cards": cards.__version__, "torch": torch.__version__, "transformers": version("transformers")},
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    }


@dataclass(slots=True)
class Bench:
    """Adds to the results what they lack; `errors` are what went wrong with answers, which are left out."""

    plan: Plan
    questions: Sequence[Question]
    models: Models
    results: Results
    show: bool | None = None  # a progress bar (None: on a terminal)
    errors: list[str] = field(default_factory=list)

    async def run(self, arms: Sequence[Arm]) -> None:
        """One arm after another, each from an empty cache; answers are graded after the clock has stopped."""
        await self.models.warm_up(self._shaped(self.questions[0].asked))
        for number, arm in enumerate(arms, 1):
            try:
                await self._decode(arm, f"{arm.label} ({number}/{len(arms)})")
            except CardsError as error:  # of the method as a whole
                self.errors.append(f"{arm.label}: {error}")
            await self._grade()

    async def _decode(self, arm: Arm, title: str) -> None:
        """All prompts and seeds of an arm together."""
        plan, results = self.plan, self.results
        decoder = self.models.decoder(arm.method)
        known = {key(row) for row in results.rows}
        chosen = sample(self.questions, plan.limit, plan.sample_seed)
        repeated = [(question, k) for k in range(plan.seeds) for question in chosen]
        rows = [_row(arm, question, plan.seed + question.number + REPETITION * k) for question, k in repeated]

        async def answer(row: Row) -> None:
            prompt = self._shaped(row["prompt"])
            result = await decoder.agenerate(prompt, seed=row["seed"], max_tokens=plan.max_tokens, stop=plan.stop)
            kept = {name: getattr(result, name) for name in ("text", "token_ids", "finish_reason")}
            results.append(row | kept | {"usage": result.usage.to_dict()})

        before = len(results.rows)
        self.models.forget()
        start = time.perf_counter()
        wanted = [row for row in rows if key(row) not in known]
        await self._together(wanted, answer, plan.concurrency or self.models.engine.rows, title)
        batch = {"seconds": time.perf_counter() - start, "requests": len(results.rows) - before}
        for row in results.rows[before:]:
            row["batch"] = batch

    async def _grade(self) -> None:
        """Grade what has no grades yet, an earlier run's included."""

        async def grade(row: Row) -> None:
            other = None
            if len(self.questions) > 1:
                other = self._shaped(self.questions[row["number"] - 1 if row["number"] else 1].asked)
            response = Response(row["text"], tuple(row["token_ids"]), row["finish_reason"])
            row.update(await self.models.grades(self._shaped(row["prompt"]), other, response))

        ungraded = [row for row in self.results.rows if "reward" not in row]
        await self._together(ungraded, grade, self.models.engine.rows, "grading")
        if ungraded:
            self.results.rewrite()

    async def _together(self, rows: Sequence[Row], act: Callable[[Row], Awaitable[None]], concurrency: int, title: str) -> None:
        """Act on all rows; what goes wrong with one is noted, and the others go on."""

        def failed(row: Row, error: CardsError) -> None:
            self.errors.append(f"{row['label']}, prompt {row['id']}, seed {row['seed']}: {error}")

        await together(rows, act, failed, concurrency, self.show, title)

    def _shaped(self, asked: Any) -> PromptLike:
        return shaped(asked, self.plan.form, self.models.engine.chats)


def _row(arm: Arm, question: Question, seed: int) -> Row:
    """What is known of an answer before it is decoded."""
    return {
        "id": question.id,
        "number": question.number,
        "group": question.group,
        "prompt": question.asked if isinstance(question.asked, str) else list(question.asked),
        "method": arm.method.name,
        "label": arm.label,
        "line": arm.line,
        "settings": arm.settings,
        "kl_bound": arm.method.kl_bound,
        "seed": seed,
    }
