"""The stages of a calibration, each of which adds to the samples what they lack."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cards.boundaries import Entropy
from cards.methods.segments.cards import CARDS
from cards.methods.segments.driver import Width
from cards.prompts import format_prompt
from cards.rewards.base import Reward
from cards.study.calibrate.choose import Recommendation, Wish, bar_of, choose, measured, rates
from cards.study.calibrate.lengths import Cut, cuts, suggested, thresholds_of
from cards.study.calibrate.predict import Grid, Row, predict
from cards.study.calibrate.samples import Drawing, answers_of, tree_of
from cards.study.models import Models
from cards.study.prompts import PromptRecord
from cards.study.session import Session
from cards.study.statistics import Estimate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROBE_SEED = 500_000  # away from the seeds that the candidates were drawn with
TARGETS, BETAS, ALPHAS = 24, (0.25, 0.5, 1.0), (0.5, 1.0)


@dataclass(frozen=True, slots=True)
class CalibrationRequest:
    """What is wanted: the wish, and what is fixed beforehand (None: to be found)."""

    wish: Wish
    entropy_threshold: float | None = None
    segment_tokens: float | None = None
    target: float | None = None
    beta: float | None = None
    alpha: float | None = None
    probes: int = 2


@dataclass(frozen=True, slots=True)
class Probe:
    """A setting that was tried on the prompts: what had been predicted, and what it did."""

    settings: dict[str, Any]
    predicted: dict[str, Estimate]
    measured: dict[str, Estimate]


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """Plain answers, cuts and the one chosen, predictions [settings, prompts, FIGURES], the choice, and what was tried."""

    answers: list[Row]
    cuts: list[Cut]
    cut: Cut
    grid: Grid
    figures: NDArray[np.float64]
    choice: Recommendation
    settings: dict[str, Any]
    target: Estimate
    probes: list[Probe]


@dataclass(slots=True)
class Calibration:
    """Models, prompts, and the session that has the samples; `form` as in a bench's Plan."""

    models: Models
    reward: Reward
    records: Sequence[PromptRecord]
    drawing: Drawing
    session: Session
    form: str = "auto"

    async def run(self, asked: CalibrationRequest) -> CalibrationResult:
        """Sample, predict, choose, and try what was chosen; where that differs, correct the predictions and choose again."""
        drawing = self.drawing
        answers = await self.plain()
        found, own = self.cuts(answers, asked)
        trees = await self.segments(own.threshold)
        grid = self._grid(answers, trees, asked)
        figures = predict(grid, answers, trees, drawing.max_tokens)
        bars = bar_of(answers, asked.wish.top)
        choice = choose(figures, grid.target, asked.wish, bars)
        probes: list[Probe] = []
        for number in range(asked.probes):
            settings = self._settings(grid.settings(choice.place), own)
            done = await self.probe(settings)
            probes.append(Probe(settings, choice.rates, measured(done, answers)))
            factors = _factors(figures, choice.place, probes[-1])
            again = choose(figures, grid.target, asked.wish, bars, factors)
            if again.place == choice.place or number + 1 == asked.probes:
                break
            choice = again
        settings = self._settings(grid.settings(choice.place), own)
        return CalibrationResult(answers, found, own, grid, figures, choice, settings, choice.target, probes)

    async def plain(self) -> list[Row]:
        """Plain answers to each prompt."""
        engine = self.models.engine
        return await self._complete(
            "answers", {}, lambda q: answers_of(self.drawing, self._prompt(q), q.number, engine, self.reward), "plain answers"
        )

    async def segments(self, threshold: float) -> list[Row]:
        """Candidates for the segments that this tau_u cuts."""
        engine, boundary = self.models.engine, Entropy(threshold=threshold)
        return await self._complete(
            "segments",
            {"entropy_threshold": threshold},
            lambda q: tree_of(self.drawing, self._prompt(q), q.number, engine, self.reward, boundary),
            "segments",
        )

    async def probe(self, settings: dict[str, Any], width: Width = 1) -> list[Row]:
        """One answer to each prompt by CARDS itself; one candidate at a time is what costs are predicted for."""
        decoder = self.models.decoder(CARDS(**settings, width=width))

        async def one(record: PromptRecord) -> Row:
            prompt = format_prompt(record.prompt, self.form, self.models.engine.chats)
            seed = self.drawing.seed + PROBE_SEED + record.number
            result = await decoder.agenerate(prompt, seed=seed, max_tokens=self.drawing.max_tokens)
            return {"tokens": len(result.token_ids), "reward": result.reward, "usage": result.usage.to_dict()}

        return await self._complete("probe", {**settings, "width": width}, one, "trying")

    def cuts(self, answers: Sequence[Row], asked: CalibrationRequest) -> tuple[list[Cut], Cut]:
        """What each tau_u does to plain answers, and the one to take."""
        fixed, limits = asked.entropy_threshold, (Entropy().minimum, Entropy().maximum or self.drawing.max_tokens)
        if fixed is not None:
            [own] = cuts(answers, [fixed], *limits)
            return [own], own
        found = cuts(answers, thresholds_of(answers), *limits)
        return found, suggested(answers, found, asked.segment_tokens)

    async def _complete(
        self, stage: str, settings: dict[str, Any], act: Callable[[PromptRecord], Awaitable[Row]], title: str
    ) -> list[Row]:
        """Return the rows of a stage, one for each prompt. Prompts that the samples have are not drawn again."""
        mark = {"stage": stage, "settings": settings}

        async def one(record: PromptRecord) -> Row:
            return {**mark, "number": record.number, **await act(record)}

        todo = {(stage, json.dumps(settings, sort_keys=True), record.number): record for record in self.records}
        return await self.session.complete(todo, one, _key, self.models.engine.rows, title)

    def _prompt(self, record: PromptRecord) -> Any:
        return self.models.engine.encode(format_prompt(record.prompt, self.form, self.models.engine.chats))

    def _grid(self, answers: Sequence[Row], trees: Sequence[Row], asked: CalibrationRequest) -> Grid:
        """Targets from the lower quartile of plain answers to the best candidates; betas in deviations within a prompt."""
        import numpy as np

        plain = np.concatenate([row["rewards"] for row in answers])
        best = np.array([max(max(node["rewards"]) for level in tree["levels"] for node in level) for tree in trees])
        targets = np.linspace(np.quantile(plain, 0.25), np.quantile(best, 0.75), TARGETS)
        within = float(np.mean([np.std(row["rewards"]) for row in answers])) or 1.0
        return Grid.of(
            targets.tolist() if asked.target is None else [asked.target],
            [share * within for share in BETAS] if asked.beta is None else [asked.beta],
            ALPHAS if asked.alpha is None else [asked.alpha],
        )

    def _settings(self, chosen: dict[str, Any], own: Cut) -> dict[str, Any]:
        """All of CARDS's settings that the prediction rests on."""
        drawn = self.drawing.sampling
        return {
            **chosen,
            "entropy_threshold": own.threshold,
            "max_rejections": self.drawing.candidates - 1,
            **{"temperature": drawn.temperature, "top_k": drawn.top_k, "top_p": drawn.top_p},
        }


def _key(row: Row) -> tuple[str, str, int]:
    return row["stage"], json.dumps(row["settings"], sort_keys=True), row["number"]


def _factors(figures: NDArray[np.float64], place: int, probe: Probe) -> dict[str, float]:
    """Measured over predicted, for the rates that wishes are about, where the prediction lies outside the measured interval."""
    factors = {}
    for name in ("cost", "fallback", "reward"):
        predicted, found = float(rates(figures[place].mean(0))[name]), probe.measured[name]
        if not found.low <= predicted <= found.high and predicted * found.mean > 0:
            factors[name] = found.mean / predicted
    return factors
