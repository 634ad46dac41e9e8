"""The stages of a calibration, each of which adds to the samples what they lack."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cards.boundaries import Entropy
from cards.errors import CardsError
from cards.methods.segments.cards import CARDS
from cards.methods.segments.driver import Width
from cards.progress import together
from cards.rewards.base import Reward
from cards.study.bench.results import Results
from cards.study.calibrate.choose import Choice, Wish, bar_of, choose, measured, rates
from cards.study.calibrate.lengths import Cut, cuts, suggested, thresholds_of
from cards.study.calibrate.predict import Grid, Row, predict
from cards.study.calibrate.samples import Drawing, answers_of, tree_of
from cards.study.models import Models
from cards.study.prompts import Question, shaped
from cards.study.statistics import Estimate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROBE_SEED = 500_000  # away from the seeds that the candidates were drawn with
TARGETS, BETAS, ALPHAS = 24, (0.25, 0.5, 1.0), (0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Asked:
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
class Found:
    """Plain answers, cuts and the one chosen, predictions [settings, prompts, FIGURES], the choice, and what was tried."""

    answers: list[Row]
    cuts: list[Cut]
    cut: Cut
    grid: Grid
    figures: NDArray[np.float64]
    choice: Choice
    settings: dict[str, Any]
    target: Estimate
    probes: list[Probe]


@dataclass(slots=True)
class Calibration:
    """Models, prompts and samples; `form` as in a bench's Plan."""

    models: Models
    reward: Reward
    questions: Sequence[Question]
    drawing: Drawing
    results: Results
    form: str = "auto"
    show: bool | None = None

    async def run(self, asked: Asked) -> Found:
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
        return Found(answers, found, own, grid, figures, choice, settings, choice.target, probes)

    async def plain(self) -> list[Row]:
        """Plain answers to each prompt."""
        engine = self.models.engine
        return await self._all(
            "answers", {}, lambda q: answers_of(self.drawing, self._prompt(q), q.number, engine, self.reward), "plain answers"
        )

    async def segments(self, threshold: float) -> list[Row]:
        """Candidates for the segments that this tau_u cuts."""
        engine, boundary = self.models.engine, Entropy(threshold=threshold)
        return await self._all(
            "segments",
            {"entropy_threshold": threshold},
            lambda q: tree_of(self.drawing, self._prompt(q), q.number, engine, self.reward, boundary),
            "segments",
        )

    async def probe(self, settings: dict[str, Any], width: Width = 1) -> list[Row]:
        """One answer to each prompt by CARDS itself; one candidate at a time is what costs are predicted for."""
        decoder = self.models.decoder(CARDS(**settings, width=width))

        async def one(question: Question) -> Row:
            prompt = shaped(question.asked, self.form, self.models.engine.chats)
            seed = self.drawing.seed + PROBE_SEED + question.number
            result = await decoder.agenerate(prompt, seed=seed, max_tokens=self.drawing.max_tokens)
            return {"tokens": len(result.token_ids), "reward": result.reward, "usage": result.usage.to_dict()}

        return await self._all("probe", {**settings, "width": width}, one, "trying")

    def cuts(self, answers: Sequence[Row], asked: Asked) -> tuple[list[Cut], Cut]:
        """What each tau_u does to plain answers, and the one to take."""
        fixed, limits = asked.entropy_threshold, (Entropy().minimum, Entropy().maximum or self.drawing.max_tokens)
        if fixed is not None:
            [own] = cuts(answers, [fixed], *limits)
            return [own], own
        found = cuts(answers, thresholds_of(answers), *limits)
        return found, suggested(answers, found, asked.segment_tokens)

    async def _all(
        self, stage: str, settings: dict[str, Any], act: Callable[[Question], Awaitable[Row]], title: str
    ) -> list[Row]:
        """What a stage gives for each prompt; prompts that the samples have are not asked again."""
        mark = {"stage": stage, "settings": settings}
        have = {row["number"]: row for row in self.results.rows if {name: row[name] for name in mark} == mark}
        lacking = [question for question in self.questions if question.number not in have]

        async def one(question: Question) -> None:
            row = {**mark, "number": question.number, **await act(question)}
            have[question.number] = row
            self.results.append(row)

        def failed(_: Question, error: CardsError) -> None:
            raise error  # what the others gave is in the samples

        await together(lacking, one, failed, self.models.engine.rows, self.show, title)
        return [have[question.number] for question in self.questions]

    def _prompt(self, question: Question) -> Any:
        return self.models.engine.encode(shaped(question.asked, self.form, self.models.engine.chats))

    def _grid(self, answers: Sequence[Row], trees: Sequence[Row], asked: Asked) -> Grid:
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


def _factors(figures: NDArray[np.float64], place: int, probe: Probe) -> dict[str, float]:
    """Measured over predicted, for the rates that wishes are about, where the prediction lies outside the measured interval."""
    factors = {}
    for name in ("cost", "fallback", "reward"):
        predicted, found = float(rates(figures[place].mean(0))[name]), probe.measured[name]
        if not found.low <= predicted <= found.high and predicted * found.mean > 0:
            factors[name] = found.mean / predicted
    return factors
