"""The run of a bench: decode and grade the responses that the results do not have yet."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cards
from cards.decoder import Decoder, PromptLike
from cards.errors import CardsError
from cards.events import Response, Result, Segment
from cards.prompts import FormOptions
from cards.settings import settings_of
from cards.study.bench.plan import Arm, Plan
from cards.study.journal import Row
from cards.study.models import Models
from cards.study.prompts import PromptRecord, sample
from cards.study.session import Session
from cards.usage import Usage

PROMPTING = tuple(settings_of(FormOptions))
REPETITION = 1_000_000  # distance between the seeds of two repetitions of a prompt


def header(plan: Plan, models: Models) -> dict[str, Any]:
    """Return the header of a results file: all that its rows must have in common."""
    libraries = {name: sys.modules[name] for name in sorted(models.all_libraries()) if name in sys.modules}
    torch = libraries.get("torch")
    placed = ("device", "dtype", "slots", "context", "threads", "mix", "chat_template")
    same = ("prompts", *PROMPTING, "max_tokens", "stop", "concurrency", *placed)
    return {
        "model": models.engine.name,
        "reward": models.reward.name if models.reward else "none",
        "gold": models.gold.name if models.gold else "none",
        **{name: list(value) if isinstance(value := getattr(plan, name), tuple) else value for name in same},
        "versions": {"cards": cards.__version__} | {name: module.__version__ for name, module in libraries.items()},
        "machine": torch.cuda.get_device_name() if torch and torch.cuda.is_available() else platform.machine(),
    }


def key(row: Row) -> tuple[str, str, str, int]:
    """Return the key of a response: prompt, method, settings and seed."""
    prompt = hashlib.sha256(json.dumps(row["prompt"], sort_keys=True).encode()).hexdigest()
    return prompt, row["method"], json.dumps(row["settings"], sort_keys=True), row["seed"]


@dataclass(slots=True)
class Bench:
    """A run of a plan, which adds missing responses to the results. The session records the errors of failed responses."""

    plan: Plan
    records: Sequence[PromptRecord]
    models: Models
    session: Session

    async def run(self, arms: Sequence[Arm]) -> None:
        """Run the arms one after another, each with empty caches. Grading is not part of the measured time."""
        await self.models.warm_up(self._shaped(self.records[0].prompt))
        for number, arm in enumerate(arms, 1):
            try:
                await self._decode(arm, f"{arm.label} ({number}/{len(arms)})")
            except CardsError as error:  # the arm cannot run; the other arms continue
                self.session.errors.append(f"{arm.label}: {error}")
            await self._grade()

    async def _decode(self, arm: Arm, title: str) -> None:
        """Decode all prompts and seeds of an arm concurrently."""
        plan, rows = self.plan, self.session.rows
        decoder = self.models.decoder(arm.method)
        chosen = sample(self.records, plan.limit, plan.sample_seed)
        repeated = [(record, k) for k in range(plan.seeds) for record in chosen]
        planned = [_row(arm, record, plan.seed + record.number + REPETITION * k) for record, k in repeated]

        before, concurrency = len(rows), plan.concurrency or self.models.engine.rows
        self.models.forget()
        start = time.perf_counter()
        await self.session.complete(
            {key(row): row for row in planned}, partial(self.respond, decoder), key, concurrency, title, _note
        )
        batch = {"seconds": time.perf_counter() - start, "requests": len(rows) - before}
        for row in rows[before:]:
            row["batch"] = batch

    async def respond(self, decoder: Decoder, row: Row) -> Row:
        """Return the row with its response and usage."""
        plan = self.plan
        prompt = self._shaped(row["prompt"])
        result = await decoder.agenerate(prompt, seed=row["seed"], max_tokens=plan.max_tokens, stop=plan.stop)
        return row | response_fields(result, result.usage)

    async def _grade(self) -> None:
        """Grade all ungraded responses, including those of an earlier run."""

        places = {record.number: place for place, record in enumerate(self.records)}  # prompts that are too long are missing

        async def grade(row: Row) -> None:
            other, place = None, places.get(row["number"], 0)
            if len(self.records) > 1:
                other = self._shaped(self.records[place - 1 if place else 1].prompt)
            response = Response(row["text"], tuple(row["token_ids"]), row["finish_reason"])
            row.update(await self.models.grades(self._shaped(row["prompt"]), other, response))

        ungraded = [row for row in self.session.rows if "reward" not in row]
        await self.session.each(ungraded, grade, self.models.engine.rows, "grading", _note)
        if ungraded:
            self.session.journal.rewrite()

    def _shaped(self, prompt: Any) -> PromptLike:
        return self.plan.prompt(prompt, self.models.engine.chats)


def response_fields(response: Result | Segment, usage: Usage) -> dict[str, Any]:
    """Return the fields of a row that describe its response and the cost."""
    fields = {name: getattr(response, name) for name in ("text", "token_ids", "finish_reason")}
    return fields | {"usage": usage.to_dict()}


def _note(row: Row, error: CardsError) -> str:
    return f"{row['label']}, prompt {row['id']}, seed {row['seed']}: {error}"


def _row(arm: Arm, record: PromptRecord, seed: int) -> Row:
    """Return the fields of a row that are known before decoding."""
    return {
        "id": record.id,
        "number": record.number,
        "group": record.group,
        "prompt": record.prompt if isinstance(record.prompt, str) else list(record.prompt),
        "method": arm.method.name,
        "label": arm.label,
        "line": arm.line,
        "settings": arm.settings,
        "kl_bound": arm.method.kl_bound,
        "seed": seed,
    }
