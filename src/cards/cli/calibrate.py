"""`cards calibrate`: find r*, tau_u and beta for models and prompts, and predict their cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cards.cli.models import fitting, load_models
from cards.cli.options import FORM, MAX_TOKENS, MODEL, OUTPUT, PROMPT_SOURCE, REWARD, with_placement
from cards.console import say, show_warning
from cards.errors import CardsError, SettingError, check
from cards.placement import Placement
from cards.sampling import Sampling
from cards.study.calibrate import plot
from cards.study.calibrate.choose import Constraints
from cards.study.calibrate.report import LEVELS, entropies, profile_of, rewards_by_length, to_dict
from cards.study.calibrate.run import Calibration, CalibrationRequest, CalibrationResult, Probe
from cards.study.calibrate.samples import SamplingPlan
from cards.study.prompts import read, sample
from cards.study.session import opened
from cards.study.statistics import Estimate, interval_name
from cards.study.tables import Table, interval, show_tables, to_json

CONSTRAINTS, FIXED, SAMPLES = "Constraints", "Fixed settings", "Samples"
DEFAULT_COST = 3.0
NO_REWARD = "A calibration needs a reward: choose one with --reward."


@with_placement
def calibrate(
    prompts: Annotated[str, typer.Argument(metavar="PROMPTS", help=PROMPT_SOURCE)],
    out: Annotated[Path, typer.Option(help="Profile (.json); samples, report and plot are written next to it.")] = Path(
        "profile.json"
    ),
    max_cost: Annotated[
        float | None,
        typer.Option(
            help="Maximum FLOPs of a response, as a multiple of plain sampling.",
            show_default=f"{DEFAULT_COST:g} without other constraints",
            rich_help_panel=CONSTRAINTS,
        ),
    ] = None,
    top: Annotated[
        float | None,
        typer.Option(
            help="Reach the mean reward of this top share of plain responses (0.1: the best tenth) at the lowest cost.",
            rich_help_panel=CONSTRAINTS,
        ),
    ] = None,
    max_fallback: Annotated[
        float | None, typer.Option(help="Maximum share of segments that are fallbacks (0.02: 2%).", rich_help_panel=CONSTRAINTS)
    ] = None,
    entropy_threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Entropy threshold tau_u in nats.",
            show_default="chosen from the measured entropies",
            rich_help_panel=FIXED,
        ),
    ] = None,
    segment_tokens: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Mean number of tokens per segment.",
            show_default="derived from the mean length of responses",
            rich_help_panel=FIXED,
        ),
    ] = None,
    target: Annotated[float | None, typer.Option(help="Target reward r*.", rich_help_panel=FIXED)] = None,
    beta: Annotated[
        float | None, typer.Option(help="Softness of the acceptance test; lower is stricter.", rich_help_panel=FIXED)
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Start of the threshold: 0 at the reward of the prompt, 1 at the target.", rich_help_panel=FIXED
        ),
    ] = None,
    max_rejections: Annotated[
        int, typer.Option(min=1, help="Maximum number of rejections before a fallback.", rich_help_panel=FIXED)
    ] = 20,
    temperature: Annotated[float, typer.Option(min=0.01, help="Temperature of the proposal.", rich_help_panel=FIXED)] = 0.7,
    top_k: Annotated[int, typer.Option(min=1, help="Number of most likely tokens to sample from.", rich_help_panel=FIXED)] = 40,
    top_p: Annotated[
        float, typer.Option(help="Total probability of the most likely tokens to sample from.", rich_help_panel=FIXED)
    ] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help=MAX_TOKENS, rich_help_panel=FIXED)] = 128,
    form: Annotated[str, typer.Option(help=FORM, rich_help_panel=FIXED)] = "auto",
    limit: Annotated[
        int | None, typer.Option(min=2, help="Number of prompts to sample; all if omitted.", rich_help_panel=SAMPLES)
    ] = None,
    answers: Annotated[int, typer.Option(min=2, help="Number of plain responses per prompt.", rich_help_panel=SAMPLES)] = 16,
    nodes: Annotated[
        int, typer.Option(min=1, help="Number of prefixes to continue per segment index.", rich_help_panel=SAMPLES)
    ] = 4,
    probes: Annotated[
        int, typer.Option(min=0, help="Number of settings to measure, with one response per prompt.", rich_help_panel=SAMPLES)
    ] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.", rich_help_panel=SAMPLES)] = 0,
    model: Annotated[str, MODEL] = "tiny",
    reward: Annotated[str, REWARD] = "tiny",
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.", rich_help_panel=OUTPUT)] = False,
    *,
    placed: dict[str, Any],
) -> None:
    """Find settings of CARDS for a model, a reward and prompts, and write them to a profile.

    The command samples responses to PROMPTS, predicts the cost, acceptance and fallbacks of each setting, selects one that
    meets the constraints, and measures it. Other commands read the profile with --profile. To resume, run the same command
    again.
    """
    limit_cost = max_cost if (max_cost, top, max_fallback) != (None, None, None) else DEFAULT_COST
    constraints = Constraints(limit_cost, top, max_fallback)
    check(reward != "none", NO_REWARD)
    check(out.suffix == ".json", f"--out must end in .json, got {str(out)!r}.")
    check(entropy_threshold is None or segment_tokens is None, "Give --entropy-threshold or --segment-tokens, not both.")
    plan = SamplingPlan(Sampling(temperature, top_k, top_p), max_tokens, answers, nodes, max_rejections + 1, seed)
    request = CalibrationRequest(constraints, entropy_threshold, segment_tokens, target, beta, alpha, probes)
    records = sample(read(prompts), limit, seed)
    models = load_models(model, reward, "none", Placement(**placed))
    if models.reward is None:
        raise SettingError(NO_REWARD)
    records = fitting(models, records, form, max_tokens)
    check(len(records) > 1, f"A calibration needs at least 2 prompts, got {len(records)}.")
    samples = out.with_suffix(".samples.jsonl")
    header: dict[str, Any] = {
        "model": model,
        "reward": reward,
        "prompts": prompts,
        "form": form,
        "limit": limit,
        "max_tokens": max_tokens,
    }
    header |= {"answers": answers, "nodes": nodes, "max_rejections": max_rejections, "seed": seed}
    header |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    with opened(samples, header, "calibration") as session:
        work = Calibration(models, models.reward, records, plan, session, form)
        result = session.run(work.run(request), "samples", models.run)
    profile = profile_of(work, result, request, prompts, model, reward)
    profile.write(out)
    report = to_json(to_dict(result, profile), indent=2)
    out.with_suffix(".report.json").write_text(report, encoding="utf-8")
    try:
        plot.save(result, out.with_suffix(".png"))
    except CardsError as error:
        show_warning(str(error))
    if json:
        typer.echo(report, nl=False)
    else:
        _show(result)
    say(f"profile: {out}, with .samples.jsonl, .report.json and .png next to it", "dim")


def _show(result: CalibrationResult) -> None:
    show_tables(_tables(result), compact=True)
    console = Console(highlight=False, markup=False)
    chosen = ", ".join(f"{name} {value}" for name, value in result.settings.items())
    console.print(f"recommended: {chosen}")
    console.print(f"r*: {interval_name(len(result.responses))}, {result.target.low:.2f} to {result.target.high:.2f}")


def _tables(result: CalibrationResult) -> Iterator[Table]:
    heads = [f"{level:.0%}" for level in LEVELS]
    rows = []
    for row in rewards_by_length(result.responses):
        correlation = "" if row["correlation"] is None or row["tokens"] is None else f"{row['correlation']:.2f}"
        values = [f"{q:.2f}" for q in row["quantiles"]]
        rows.append([str(row["tokens"] or "end"), str(row["texts"]), *values, correlation])
    columns = ["tokens", "responses", *heads, "correlation with the final reward"]
    yield Table("rewards of plain responses, by number of tokens so far", columns, rows)
    if levels := entropies(result.responses):
        yield Table("entropy of the next token (nats)", heads, [[f"{q:.2f}" for q in levels]])
    rows = []
    for option in result.options:
        values = [f"{x:.1f}" for x in (option.tokens, *option.quartiles, option.segments)]
        rows.append([f"{option.threshold:.2f}", *values, "chosen" if option == result.lengths else ""])
    yield Table("segments by tau_u", ["tau_u", "mean tokens", "25%", "50%", "75%", "segments per response", ""], rows)
    shown: Sequence[Probe | None] = result.probes or [None]
    for probe in shown:
        settings = result.settings if probe is None else probe.settings
        name = ", ".join(f"{key} {settings[key]}" for key in ("target", "beta", "acceptance", "alpha") if key in settings)
        figures = {"predicted": result.choice.rates if probe is None else probe.predicted}
        figures |= {} if probe is None else {"measured": probe.measured}
        rows = [[rate, *(_figure(rate, values[rate]) for values in figures.values())] for rate in result.choice.rates]
        yield Table(f"rates for {name} ({interval_name(len(result.responses))})", ["", *figures], rows)


def _figure(name: str, value: Estimate) -> str:
    if name in ("acceptance", "fallback"):
        return f"{value.mean:.0%} [{value.low:.0%}, {value.high:.0%}]"
    return interval(value)
