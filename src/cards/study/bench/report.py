"""The report of a bench: metrics of each method with its settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from cards.errors import UnknownNameError
from cards.registry import has_tests
from cards.study.bench import metrics
from cards.study.journal import Row
from cards.study.statistics import Comparison, Estimate, ScoredResponse, compare, estimate
from cards.usage import Usage

FIRST_N = {"distinct": 1, "repetition": 2}  # the n of the first n-gram metric in each tuple


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """Metrics of one arm, None without data. Tokens, FLOPs and seconds are per response; `answers` is their number."""

    label: str
    line: str
    answers: int
    score: Estimate | None  # the gold reward, or the reward if there is no gold reward
    reward: Estimate | None
    against: Comparison | None
    kept: float
    drawn: float  # tokens of the LM and of a draft model
    rm_tokens: float
    flops: float | None
    seconds: float | None  # wall-clock time of the batches over their number of responses
    latency: float
    acceptance: float | None
    fallback: float | None
    distinct: tuple[float | None, ...]
    repetition: tuple[float | None, ...]
    coherence: float | None
    perplexity: float | None
    excess_nll: float | None
    kl_bound: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return a flat dictionary with keys such as `score.low` and `distinct.1`."""
        return dict(_flat("", asdict(self)))


@dataclass(frozen=True, slots=True)
class BenchReport:
    header: dict[str, Any]
    baseline: str
    tolerance: float
    graded: str  # the reward that is the score: gold or reward
    prompts: int
    summaries: list[ArmSummary]


def report(header: dict[str, Any], rows: Sequence[Row], baseline: str = "vanilla", tolerance: float = 0.0) -> BenchReport:
    """Summarize the graded rows. Raises UnknownNameError if the baseline is unknown.

    If there is no arm `vanilla`, the default baseline is the first arm.
    """
    arms: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if "reward" in row:
            arms.setdefault((row["method"], json.dumps(row["settings"], sort_keys=True)), []).append(row)
    labels = {arm_rows[0]["label"]: arm_rows for arm_rows in arms.values()}
    if baseline not in labels and baseline != "vanilla":
        raise UnknownNameError("baseline", baseline, labels)
    if baseline not in labels:
        baseline = next(iter(labels), "")
    graded = next((name for name in ("gold", "reward") if any(row.get(name) is not None for row in rows)), "reward")
    base = labels.get(baseline, [])
    summaries = [_summary(arm_rows, base, graded, tolerance) for arm_rows in arms.values()]
    prompts = min((len({row["id"] for row in arm_rows}) for arm_rows in arms.values()), default=0)
    return BenchReport(header, baseline, tolerance, graded, prompts, summaries)


def _summary(rows: list[Row], base: list[Row], graded: str, tolerance: float) -> ArmSummary:
    usage = sum((Usage(**row["usage"]) for row in rows), Usage())
    texts = [row["text"] for row in rows]
    with_logprob = [row for row in rows if row["logprob"] is not None]
    with_both = [row for row in with_logprob if row["logprob_other"] is not None]
    nll, base_nll = (_mean(-row["logprob"] for row in group if row["logprob"] is not None) for group in (rows, base))
    return ArmSummary(
        label=rows[0]["label"],
        line=rows[0]["line"],
        answers=len(rows),
        score=_estimate(rows, graded),
        reward=_estimate(rows, "reward"),
        against=compare(_responses(rows, graded), _responses(base, graded), tolerance),
        kept=fmean(len(row["token_ids"]) for row in rows),
        drawn=(usage.lm_decoded_tokens + usage.draft_decoded_tokens) / len(rows),
        rm_tokens=usage.rm_tokens / len(rows),
        flops=usage.flops / len(rows) or None,
        seconds=_mean(row["batch"]["seconds"] / row["batch"]["requests"] for row in rows if "batch" in row),
        latency=usage.seconds / len(rows),
        acceptance=usage.acceptance_rate if has_tests(rows[0]["method"]) else None,
        fallback=usage.fallback_rate if usage.fallbacks or has_tests(rows[0]["method"]) else None,
        distinct=tuple(metrics.distinct(texts, n) for n in (1, 2, 3)),
        repetition=tuple(metrics.repetition(texts, n) for n in (2, 3, 4)),
        coherence=metrics.coherence((row["logprob"], row["logprob_other"], len(row["token_ids"])) for row in with_both),
        perplexity=metrics.perplexity((row["logprob"], len(row["token_ids"])) for row in with_logprob),
        excess_nll=None if nll is None or base_nll is None else nll - base_nll,
        kl_bound=rows[0]["kl_bound"],
    )


def _estimate(rows: Iterable[Row], name: str) -> Estimate | None:
    return estimate((row["id"], row[name]) for row in rows if row[name] is not None)


def _responses(rows: Iterable[Row], name: str) -> list[ScoredResponse]:
    return [ScoredResponse(row["id"], row["seed"], row["text"], row[name]) for row in rows if row[name] is not None]


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return fmean(numbers) if numbers else None


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else key, inner)
    elif isinstance(value, tuple):
        for n, inner in enumerate(value, FIRST_N[name]):
            yield f"{name}.{n}", inner
    else:
        yield name, value
