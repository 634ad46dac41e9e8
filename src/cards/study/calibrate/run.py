"""The run of a calibration: sample, predict, choose a setting and measure it. Stages reuse existing samples."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cards.boundaries import Entropy
from cards.events import Prompt
from cards.methods.segments.cards import CARDS
from cards.methods.segments.driver import Width
from cards.rewards.base import Reward
from cards.study.calibrate.choose import Recommendation, choose, measured, rates, reward_bounds
from cards.study.calibrate.confirm import Doubt, doubts
from cards.study.calibrate.lengths import SegmentLengths, lengths_by_threshold, suggest, threshold_grid
from cards.study.calibrate.plan import CalibrationRequest, Constraints
from cards.study.calibrate.predict import Grid, predict
from cards.study.calibrate.samples import SamplingPlan, sample_responses, sample_tree
from cards.study.journal import Row
from cards.study.models import Models
from cards.study.prompts import PromptRecord
from cards.study.session import Session
from cards.study.statistics import Estimate

PROBE_SEED = 500_000  # far from the seeds of the samples
TARGETS, BETAS, ALPHAS = 24, (0.25, 0.5, 1.0), (0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Probe:
    """A setting that was run on the prompts, with its predicted and its measured rates, and how these contradict."""

    settings: dict[str, Any]
    predicted: dict[str, Estimate]
    measured: dict[str, Estimate]
    doubts: list[Doubt]


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """The result of a calibration.

    responses: rows of plain responses.
    options, lengths: segment lengths at each threshold tau_u, and at the chosen one.
    figures: predictions, [settings, prompts, FIGURES].
    """

    responses: list[Row]
    options: list[SegmentLengths]
    lengths: SegmentLengths
    grid: Grid
    figures: NDArray[np.float64]
    choice: Recommendation
    settings: dict[str, Any]
    probes: list[Probe]

    @property
    def trial(self) -> Probe | None:
        """Return the trial of the chosen settings, None if they were not tried."""
        return next((probe for probe in self.probes if probe.settings == self.settings), None)

    @property
    def confirmed(self) -> bool:
        return self.trial is not None and not self.trial.doubts


@dataclass(slots=True)
class Calibration:
    """A calibration of models on prompts. The session holds the samples."""

    models: Models
    reward: Reward
    records: Sequence[PromptRecord]
    plan: SamplingPlan
    session: Session

    async def run(self, constraints: Constraints, request: CalibrationRequest) -> CalibrationResult:
        """Sample, predict, choose a setting and measure it.

        If measured rates differ from predicted ones, correct the predictions and choose again. If the last setting is still
        in doubt, an earlier one whose trial was not is taken. Raises SettingError if no setting meets the constraints.
        """
        plain = await self.plain()
        options, lengths = self.segment_lengths(plain, request)
        trees = await self.segments(lengths.threshold)
        grid = self._grid(plain, trees, request)
        figures = predict(grid, plain, trees, self.plan.max_tokens)
        bounds = reward_bounds(plain, constraints.top)
        choice = choose(figures, grid.target, constraints, bounds)
        bound = None if bounds is None else float(bounds.mean())
        spread = float(np.mean([np.std(row["rewards"]) for row in plain]))
        probes: list[Probe] = []
        tried: list[Recommendation] = []
        for number in range(request.probes):
            settings = self._settings(grid.settings(choice.index), lengths)
            rates_of_trial = measured(await self.probe(settings), plain)
            contradictions = doubts(choice.rates, rates_of_trial, constraints, bound, spread, len(plain))
            probes.append(Probe(settings, choice.rates, rates_of_trial, contradictions))
            tried.append(choice)
            factors = _factors(figures, choice.index, probes[-1])
            corrected = choose(figures, grid.target, constraints, bounds, factors)
            if corrected.index == choice.index or number + 1 == request.probes:
                break
            choice = corrected
        if probes and probes[-1].doubts:
            choice = next((made for made, probe in zip(tried, probes, strict=True) if not probe.doubts), choice)
        settings = self._settings(grid.settings(choice.index), lengths)
        return CalibrationResult(plain, options, lengths, grid, figures, choice, settings, probes)

    async def plain(self) -> list[Row]:
        """Return plain responses to each prompt, one row per prompt."""
        engine = self.models.engine
        return await self._complete(
            "answers",
            {},
            lambda record: sample_responses(self.plan, self._prompt(record), record.number, engine, self.reward),
            "plain responses",
        )

    async def segments(self, threshold: float) -> list[Row]:
        """Return candidate segments for each prompt, with boundaries at the threshold tau_u."""
        engine, boundary = self.models.engine, Entropy(threshold=threshold)
        return await self._complete(
            "segments",
            {"entropy_threshold": threshold},
            lambda record: sample_tree(self.plan, self._prompt(record), record.number, engine, self.reward, boundary),
            "segments",
        )

    async def probe(self, settings: dict[str, Any], width: Width = 1) -> list[Row]:
        """Decode one response to each prompt with CARDS. Predicted costs assume one candidate at a time (width 1)."""
        decoder = self.models.decoder(CARDS(**settings, width=width))

        async def decode(record: PromptRecord) -> Row:
            seed = self.plan.seed + PROBE_SEED + record.number
            result = await decoder.agenerate(self._prompt(record), seed=seed, max_tokens=self.plan.max_tokens)
            return {"tokens": len(result.token_ids), "reward": result.reward, "usage": result.usage.to_dict()}

        return await self._complete("probe", {**settings, "width": width}, decode, "measuring")

    def segment_lengths(self, plain: Sequence[Row], request: CalibrationRequest) -> tuple[list[SegmentLengths], SegmentLengths]:
        """Return the segment lengths of plain responses at each threshold tau_u, and those at the chosen threshold."""
        fixed, limits = request.entropy_threshold, (Entropy().minimum, Entropy().maximum or self.plan.max_tokens)
        if fixed is not None:
            [lengths] = lengths_by_threshold(plain, [fixed], *limits)
            return [lengths], lengths
        options = lengths_by_threshold(plain, threshold_grid(plain), *limits)
        return options, suggest(plain, options, request.segment_tokens)

    async def _complete(
        self, stage: str, settings: dict[str, Any], act: Callable[[PromptRecord], Awaitable[Row]], title: str
    ) -> list[Row]:
        """Return the rows of a stage, one per prompt. Existing rows are reused."""
        columns = {"stage": stage, "settings": settings}

        async def sample(record: PromptRecord) -> Row:
            return {**columns, "number": record.number, **await act(record)}

        todo = {(stage, json.dumps(settings, sort_keys=True), record.number): record for record in self.records}
        return await self.session.complete(todo, sample, _key, self.models.engine.rows, title)

    def _prompt(self, record: PromptRecord) -> Prompt:
        return self.models.engine.encode(self.plan.prompt(record.prompt, self.models.engine.chats))

    def _grid(self, plain: Sequence[Row], trees: Sequence[Row], request: CalibrationRequest) -> Grid:
        """Return the settings to compare.

        Targets range from the lower quartile of plain responses to the best candidates. Betas are in standard deviations of
        the rewards of a prompt.
        """
        rewards = np.concatenate([row["rewards"] for row in plain])
        best = np.array([max(max(node["rewards"]) for level in tree["levels"] for node in level) for tree in trees])
        targets = np.linspace(np.quantile(rewards, 0.25), np.quantile(best, 0.75), TARGETS)
        within = float(np.mean([np.std(row["rewards"]) for row in plain])) or 1.0
        return Grid.of(
            targets.tolist() if request.target is None else [request.target],
            [share * within for share in BETAS] if request.beta is None else [request.beta],
            ALPHAS if request.alpha is None else [request.alpha],
        )

    def _settings(self, chosen: dict[str, Any], lengths: SegmentLengths) -> dict[str, Any]:
        """Return all settings of CARDS that the predictions assume."""
        sampling = self.plan.sampling
        return {
            **chosen,
            "entropy_threshold": lengths.threshold,
            "max_rejections": self.plan.max_rejections,
            **{"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p},
        }


def _key(row: Row) -> tuple[str, str, int]:
    return row["stage"], json.dumps(row["settings"], sort_keys=True), row["number"]


def _factors(figures: NDArray[np.float64], index: int, probe: Probe) -> dict[str, float]:
    """Return measured over predicted for each constrained rate whose prediction is outside the measured interval."""
    factors = {}
    for name in ("cost", "fallback", "reward"):
        predicted, actual = float(rates(figures[index].mean(0))[name]), probe.measured[name]
        if not actual.low <= predicted <= actual.high and predicted * actual.mean > 0:
            factors[name] = actual.mean / predicted
    return factors
