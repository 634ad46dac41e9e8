"""Plots of a calibration: rewards by length, entropies with tau_u, and predicted reward against predicted cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cards.study import plots
from cards.study.calibrate.report import LEVELS, predictions, rewards_by_length
from cards.study.calibrate.run import CalibrationResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save(result: CalibrationResult, path: Path) -> None:
    """Draw the plots to a file. Raises MissingExtraError if matplotlib is missing."""
    figure, (left, middle, right) = plots.panels(3, 15, 4.8, "calibrate")
    _rewards(left, result)
    _entropies(middle, result)
    _settings(right, result)
    plots.save(figure, path)


def _rewards(axis: Axes, result: CalibrationResult) -> None:
    rows = [row for row in rewards_by_length(result.responses) if row["texts"] >= 3]
    positions = range(len(rows))
    for low, high, shade in ((0, 4, 0.15), (1, 3, 0.3)):
        axis.fill_between(
            positions,
            [row["quantiles"][low] for row in rows],
            [row["quantiles"][high] for row in rows],
            color="C0",
            alpha=shade,
            linewidth=0,
            label=f"{LEVELS[low]:.0%} to {LEVELS[high]:.0%}",
        )
    axis.plot(positions, [row["quantiles"][2] for row in rows], color="C0", marker="o", label="median")
    axis.axhline(result.choice.target.mean, color="C3", linewidth=1.2, label="chosen r*")
    axis.set_xticks(positions, [str(row["tokens"] or "end") for row in rows])
    axis.set_title("Rewards of plain responses by length", fontsize=10)
    axis.set_xlabel("tokens of the response so far")
    axis.set_ylabel("reward")
    axis.legend(frameon=False, fontsize=8)


def _entropies(axis: Axes, result: CalibrationResult) -> None:
    values = [entropy for row in result.responses for response in row["entropies"] for entropy in response]
    if values:
        axis.hist(values, bins=40, color="C0", alpha=0.5)
    axis.axvline(result.lengths.threshold, color="C3", linewidth=1.2)
    axis.set_title(f"tau_u {result.lengths.threshold:.2f} gives segments of {result.lengths.tokens:.1f} tokens", fontsize=10)
    axis.set_xlabel("entropy of the next token, or tau_u (nats)")
    axis.set_ylabel("tokens of plain responses")
    lengths = axis.twinx()
    thresholds, tokens = [option.threshold for option in result.options], [option.tokens for option in result.options]
    lengths.plot(thresholds, tokens, color="C1", marker="s", markersize=4)
    lengths.set_ylabel("mean tokens per segment", color="C1")


def _settings(axis: Axes, result: CalibrationResult) -> None:
    """Draw a line per kind of test, dashed by alpha, and join each trial to the predicted rates of its setting."""
    lines: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for row in predictions(result):
        kind = f"soft, beta {row['beta']:.2f}" if "beta" in row else "hard"
        lines.setdefault((kind, row["alpha"]), []).append((row["cost"], row["reward"]))
    kinds, alphas = (sorted({key[part] for key in lines}) for part in (0, 1))
    for (kind, alpha), points in sorted(lines.items()):
        dashes, name = plots.DASHES[alphas.index(alpha) % len(plots.DASHES)], f"{kind}, alpha {alpha:g}"
        x, y = zip(*points, strict=True)
        axis.plot(x, y, color=f"C{kinds.index(kind)}", linestyle=dashes, linewidth=1.3, alpha=0.8, label=name)
    chosen = result.choice.rates
    for number, probe in enumerate(result.probes):
        pair = [(rates["cost"], rates["reward"]) for rates in (probe.predicted, probe.measured)]
        axis.plot([cost.mean for cost, _ in pair], [reward.mean for _, reward in pair], "k:", linewidth=1, zorder=4)
        cost, reward = pair[1]
        bars = plots.bars([reward]), plots.bars([cost])
        label = None if number else "measured, joined to its prediction"
        axis.errorbar(cost.mean, reward.mean, *bars, fmt="ko", markersize=4, capsize=2, linewidth=0.8, zorder=4, label=label)
    axis.plot(
        chosen["cost"].mean, chosen["reward"].mean, "*", color="gold", mec="black", markersize=13, zorder=5, label="chosen"
    )
    plots.log_axis(axis, lambda x: f"{x:g}")
    axis.set_title("Reward and cost of the settings, with 95% intervals", fontsize=10)
    axis.set_xlabel("cost of a response (plain sampling = 1)")
    axis.set_ylabel("mean reward")
    axis.legend(frameon=False, fontsize=7)
