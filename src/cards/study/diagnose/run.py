"""A diagnosis: what is scored, and the figures of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, TypeVar

from cards.errors import check
from cards.events import Response
from cards.prompts import format_prompt
from cards.rewards.base import Reward
from cards.sampling import Sampling
from cards.study.diagnose.correlation import Item, correlation
from cards.study.diagnose.pairs import PairRecord, accuracies, preferred
from cards.study.diagnose.stability import batch_drift, padding_drift, repeated
from cards.study.diagnose.texts import RULES, answers_to, prefix
from cards.study.models import Models
from cards.study.prompts import PromptRecord
from cards.study.session import Session
from cards.study.statistics import Estimate, estimate

DRIFTS = 8  # prompts on which drift is measured, text by text
POSITIONS = {"early": (0.0, 1 / 3), "middle": (1 / 3, 2 / 3), "late": (2 / 3, 1.0)}
Work = TypeVar("Work")


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Answers to one prompt: rewards at their ends, of their prefixes by rule as (part of the answer, reward), and when ..."""

    rewards: list[float]
    lengths: list[int]
    prefixes: list[dict[str, list[tuple[float, float]]]]
    twice: list[float]  # ... the answer is said twice
    gold: list[float]  # ... the gold reward scores it
    other_form: list[float]  # ... the prompt has another form
    batch: float  # the largest changes by batch and padding
    padding: float


@dataclass(frozen=True, slots=True)
class Measurements:
    """What was found. Changes are in standard deviations of rewards within prompts; None: not asked for, or nothing varies."""

    answers: int
    spread: float  # standard deviation of rewards within prompts
    prefixes: dict[str, dict[str, dict[str, Estimate | None]]]  # by rule, position (or all) and kind of correlation
    length: Estimate | None  # correlation of reward and length
    repetition: Estimate | None  # change of the reward where an answer is said twice
    drift: dict[str, float | None]  # the largest change by batch, padding; mean change by template
    template: Estimate | None  # correlation between the two forms
    preferences: dict[str, Estimate] = field(default_factory=dict)  # accuracy by part of the answers read
    hacked: Estimate | None = None  # share of prompts whose best answer is below their average for the gold reward
    discordant: Estimate | None = None  # share of pairs of answers where the gold reward goes the other way


@dataclass(slots=True)
class Diagnosis:
    """Models, what is asked, and how plain answers are drawn."""

    models: Models
    reward: Reward
    records: Sequence[PromptRecord] = ()
    pairs: Sequence[PairRecord] = ()
    form: str = "auto"
    answers: int = 8
    max_tokens: int = 128
    sampling: Sampling = field(default_factory=lambda: Sampling(0.7, 40))
    threshold: float | None = None  # tau_u of the entropy rule (None: what the LM suggests)
    fixed: int = 8
    seed: int = 0
    session: Session = field(default_factory=Session)

    async def run(self) -> Measurements:
        check(bool(self.records or self.pairs), "A diagnosis needs prompts or pairs.")
        scored = await self._each(self.records, self._score, "answers")
        judged = await self._each(self.pairs, lambda p: preferred(self.models.engine, self.reward, p, self.form), "pairs")
        return figures(scored, judged)

    async def _score(self, record: PromptRecord) -> PromptScores:
        engine, reward = self.models.engine, self.reward
        prompt = engine.encode(format_prompt(record.prompt, self.form, engine.chats))
        answers = await answers_to(
            engine,
            prompt,
            self.seed + record.number,
            count=self.answers,
            max_tokens=self.max_tokens,
            sampling=self.sampling,
            threshold=engine.entropy_threshold if self.threshold is None else self.threshold,
            fixed=self.fixed,
        )
        wholes = [answer.response for answer in answers]
        rewards = await reward.score(prompt, wholes)
        batch = padding = 0.0
        if record in self.records[:DRIFTS]:
            batch = await batch_drift(reward, prompt, wholes, rewards)
            padding = await padding_drift(engine, reward, prompt, wholes)
        prefixes = []
        for answer in answers:
            lengths = sorted({length for cuts in answer.cuts.values() for length in cuts})
            texts = [prefix(engine, prompt, answer.response, length) for length in lengths]
            scores = dict(zip(lengths, await reward.score(prompt, texts) if texts else [], strict=True))
            tokens = len(answer.response.token_ids)
            prefixes.append({rule: [(cut / tokens, scores[cut]) for cut in cuts] for rule, cuts in answer.cuts.items()})
        twice = await reward.score(prompt, [repeated(engine, prompt, whole, 2) for whole in wholes])
        gold = [] if self.models.gold is None else await self.models.gold.score(prompt, wholes)
        other = await self._other_form(record, wholes)
        return PromptScores(rewards, [len(w.token_ids) for w in wholes], prefixes, twice, gold, other, batch, padding)

    async def _other_form(self, record: PromptRecord, wholes: Sequence[Response]) -> list[float]:
        """Rewards where the prompt is written as a dialogue instead of in the model's chat template, if it has one."""
        engine = self.models.engine
        if self.form not in ("auto", "chat") or not engine.chats:
            return []
        return await self.reward.score(engine.encode(format_prompt(record.prompt, "dialogue", False)), wholes)

    async def _each(self, items: Sequence[Any], act: Callable[[Any], Awaitable[Work]], title: str) -> list[Work]:
        """Act on one item after another, because caches are cleared within an item. The texts of an item go together."""
        found: list[Work] = []

        async def one(item: Any) -> None:
            found.append(await act(item))

        await self.session.each(items, one, 1, title)
        return found


def figures(scored: Sequence[PromptScores], judged: list[list[float]]) -> Measurements:
    """The figures of what was scored."""
    import numpy as np

    spread = float(np.sqrt(np.mean([np.var(one.rewards) for one in scored]))) if scored else 0.0
    unit = spread or 1.0
    prefixes = {rule: _prefixes(scored, rule) for rule in RULES} if scored else {}
    forms = [(n, a, b) for n, one in enumerate(scored) for a, b in zip(one.rewards, one.other_form, strict=False)]
    shift = [abs(a - b) for _, a, b in forms]
    twice = [
        (str(n), (after - before) / unit)
        for n, one in enumerate(scored)
        for before, after in zip(one.rewards, one.twice, strict=True)
    ]
    graded = [(n, one) for n, one in enumerate(scored) if one.gold]
    best = [(str(n), float(one.gold[int(np.argmax(one.rewards))] < np.mean(one.gold))) for n, one in graded]
    return Measurements(
        answers=sum(len(one.rewards) for one in scored),
        spread=spread,
        prefixes=prefixes,
        length=correlation([(n, r, t) for n, one in enumerate(scored) for r, t in zip(one.rewards, one.lengths, strict=True)]),
        repetition=estimate(twice),
        drift={
            "batch": max(one.batch for one in scored) / unit if scored else None,
            "padding": max(one.padding for one in scored) / unit if scored else None,
            "template": float(np.mean(shift)) / unit if shift else None,
        },
        template=correlation(forms),
        preferences=accuracies(judged) if judged else {},
        hacked=estimate(best),
        discordant=estimate(_discordant(graded)),
    )


def _prefixes(scored: Sequence[PromptScores], rule: str) -> dict[str, dict[str, Estimate | None]]:
    """Correlation of the rewards of prefixes with those of the answers they belong to."""
    found = {}
    for position, (low, high) in {"all": (0.0, 1.0), **POSITIONS}.items():
        items: list[Item] = [
            (n, reward, final)
            for n, one in enumerate(scored)
            for final, prefixes in zip(one.rewards, one.prefixes, strict=True)
            for part, reward in prefixes.get(rule, ())
            if low < part <= high
        ]
        found[position] = {"pearson": correlation(items), "spearman": correlation(items, ranks=True)}
    return found


def _discordant(graded: Sequence[tuple[int, PromptScores]]) -> list[tuple[str, float]]:
    """For each pair of answers that the reward tells apart: whether the gold reward goes the other way."""
    return [
        (str(n), float((one.rewards[i] - one.rewards[j]) * (one.gold[i] - one.gold[j]) < 0))
        for n, one in graded
        for i, j in combinations(range(len(one.rewards)), 2)
        if one.rewards[i] != one.rewards[j]
    ]
