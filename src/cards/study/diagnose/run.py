"""The run of a diagnosis: score responses and pairs, and summarize the scores."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, TypeVar

import numpy as np

from cards.engines.base import Ask
from cards.errors import check
from cards.events import Response
from cards.methods.base import collect_segments
from cards.prompts import format_prompt
from cards.rewards.base import Reward
from cards.sampling import Sampling
from cards.study.diagnose.correlation import Item, correlation
from cards.study.diagnose.pairs import PairRecord, accuracies, preferred
from cards.study.diagnose.plan import DiagnosisPlan
from cards.study.diagnose.stability import batch_drift, padding_drift, repeated
from cards.study.diagnose.texts import RULES, prefix, segment_ends
from cards.study.models import Models
from cards.study.prompts import PromptRecord
from cards.study.session import Session
from cards.study.statistics import Estimate, estimate, share

DRIFT_PROMPTS = 8  # prompts on which drift is measured, one text at a time
POSITIONS = {"early": (0.0, 1 / 3), "middle": (1 / 3, 2 / 3), "late": (2 / 3, 1.0)}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Scores of the responses to one prompt.

    prefixes: for each response, by boundary rule: (part of the response, reward) of its prefixes.
    """

    rewards: list[float]
    lengths: list[int]
    prefixes: list[dict[str, list[tuple[float, float]]]]
    twice: list[float]  # rewards of the responses repeated once
    gold: list[float]
    other_form: list[float]  # rewards with the prompt in another form
    batch: float  # largest change of a reward by the batch
    padding: float  # largest change of a reward by padding


@dataclass(frozen=True, slots=True)
class Measurements:
    """The measurements of a diagnosis; None if not measured, or if nothing varies.

    Changes are in standard deviations of the rewards within prompts.
    """

    answers: int
    cuts: int  # incomplete responses that were scored
    spread: float  # standard deviation of the rewards within prompts
    prefixes: dict[str, dict[str, dict[str, Estimate | None]]]  # by rule, position (or all) and kind of correlation
    length: Estimate | None  # correlation of reward and length
    repetition: Estimate | None  # change of the reward if a response is repeated
    drift: dict[str, float | None]  # largest change by batch and by padding; mean change by template
    template: Estimate | None  # correlation of the rewards with the two forms of the prompt
    preferences: dict[str, Estimate] = field(default_factory=dict)  # accuracy by part of the responses read
    hacked: Estimate | None = None  # share of prompts whose highest-reward response has a gold reward below average
    discordant: Estimate | None = None  # share of pairs of responses that the gold reward orders differently


@dataclass(slots=True)
class Diagnosis:
    """A diagnosis of a reward on prompts and preference pairs."""

    models: Models
    reward: Reward
    records: Sequence[PromptRecord] = ()
    pairs: Sequence[PairRecord] = ()
    plan: DiagnosisPlan = field(default_factory=DiagnosisPlan)
    session: Session = field(default_factory=Session)

    async def run(self) -> Measurements:
        """Score everything and return the measurements. Raises SettingError without prompts and pairs."""
        check(bool(self.records or self.pairs), "A diagnosis needs prompts or pairs.")
        scores = await self._each(self.records, self._score, "responses")
        results = await self._each(self.pairs, lambda p: preferred(self.models.engine, self.reward, p, self.plan), "pairs")
        return measure(scores, results)

    async def _score(self, record: PromptRecord) -> PromptScores:
        engine, reward = self.models.engine, self.reward
        prompt = engine.encode(self.plan.prompt(record.prompt, engine.chats))
        plan = self.plan
        threshold = engine.entropy_threshold if plan.entropy_threshold is None else plan.entropy_threshold
        sampling, seed = Sampling(plan.temperature, 40), plan.seed + record.number
        ask = Ask(prompt, Response(), plan.max_tokens, sampling=sampling, seed=seed, n=plan.answers)
        responses = [Response() + segment for segment in await collect_segments(engine, ask)]
        rewards = await reward.score(prompt, responses)
        batch = padding = 0.0
        if record in self.records[:DRIFT_PROMPTS]:
            batch = await batch_drift(reward, prompt, responses, rewards)
            padding = await padding_drift(engine, reward, prompt, responses)
        prefixes = []
        for response in responses:
            ends_by_rule = await segment_ends(engine, prompt, response, threshold, plan.fixed)
            lengths = sorted({length for ends in ends_by_rule.values() for length in ends})
            texts = [prefix(engine, prompt, response, length) for length in lengths]
            scores = dict(zip(lengths, await reward.score(prompt, texts) if texts else [], strict=True))
            tokens = len(response.token_ids)
            prefixes.append({rule: [(end / tokens, scores[end]) for end in ends] for rule, ends in ends_by_rule.items()})
        twice = await reward.score(prompt, [repeated(engine, prompt, response, 2) for response in responses])
        gold = [] if self.models.gold is None else await self.models.gold.score(prompt, responses)
        other = await self._other_form(record, responses)
        return PromptScores(rewards, [len(r.token_ids) for r in responses], prefixes, twice, gold, other, batch, padding)

    async def _other_form(self, record: PromptRecord, responses: Sequence[Response]) -> list[float]:
        """Return the rewards with the prompt as a dialogue instead of in the chat template; empty without a template."""
        engine = self.models.engine
        if self.plan.form not in ("auto", "chat") or not engine.chats:
            return []
        messages = self.plan.prompt(record.prompt, chats=True)
        return await self.reward.score(engine.encode(format_prompt(messages, "dialogue", chats=False)), responses)

    async def _each(self, items: Sequence[Any], act: Callable[[Any], Awaitable[T]], title: str) -> list[T]:
        """Call `act` on one item after another, because caches are cleared within an item."""
        results: list[T] = []

        async def run_one(item: Any) -> None:
            results.append(await act(item))

        await self.session.each(items, run_one, 1, title)
        return results


def measure(scores: Sequence[PromptScores], results: list[list[float]]) -> Measurements:
    """Summarize the scores of prompts and the results on preference pairs."""
    spread = float(np.sqrt(np.mean([np.var(item.rewards) for item in scores]))) if scores else 0.0
    unit = spread or 1.0
    prefixes = {rule: _prefixes(scores, rule) for rule in RULES} if scores else {}
    forms = _paired(scores, "other_form")
    shift = [abs(a - b) for _, a, b in forms]
    graded = [(n, item) for n, item in enumerate(scores) if item.gold]
    best = [(str(n), float(item.gold[int(np.argmax(item.rewards))] < np.mean(item.gold))) for n, item in graded]
    return Measurements(
        answers=sum(len(item.rewards) for item in scores),
        cuts=sum(len(cuts) for item in scores for by_rule in item.prefixes for cuts in by_rule.values()),
        spread=spread,
        prefixes=prefixes,
        length=correlation(_paired(scores, "lengths")),
        repetition=estimate((str(n), (after - before) / unit) for n, before, after in _paired(scores, "twice")),
        drift={
            "batch": max(item.batch for item in scores) / unit if scores else None,
            "padding": max(item.padding for item in scores) / unit if scores else None,
            "template": float(np.mean(shift)) / unit if shift else None,
        },
        template=correlation(forms),
        preferences=accuracies(results) if results else {},
        hacked=share(best),
        discordant=share(_discordant(graded)),
    )


def _paired(scores: Sequence[PromptScores], name: str) -> list[Item]:
    """Return the number of the prompt, the reward and the value of `name` for each response that has one."""
    return [(n, *pair) for n, item in enumerate(scores) for pair in zip(item.rewards, getattr(item, name), strict=False)]


def _prefixes(scores: Sequence[PromptScores], rule: str) -> dict[str, dict[str, Estimate | None]]:
    """Return the correlations of the rewards of prefixes with those of the complete responses, by position."""
    correlations = {}
    for position, (low, high) in {"all": (0.0, 1.0), **POSITIONS}.items():
        items: list[Item] = [
            (n, reward, final)
            for n, item in enumerate(scores)
            for final, prefixes in zip(item.rewards, item.prefixes, strict=True)
            for part, reward in prefixes.get(rule, ())
            if low < part <= high
        ]
        correlations[position] = {"pearson": correlation(items), "spearman": correlation(items, ranks=True)}
    return correlations


def _discordant(graded: Sequence[tuple[int, PromptScores]]) -> list[tuple[str, float]]:
    """Return, for each pair of responses with different rewards, whether the gold reward orders them differently."""
    return [
        (str(n), float((item.rewards[i] - item.rewards[j]) * (item.gold[i] - item.gold[j]) < 0))
        for n, item in graded
        for i, j in combinations(range(len(item.rewards)), 2)
        if item.rewards[i] != item.rewards[j]
    ]
