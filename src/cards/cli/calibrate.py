"""`cards calibrate`: find r*, tau_u and beta for models and prompts, and predict their cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cards.cli.models import fitting, load_models
from cards.cli.options import JSON, MODEL, PROMPT_SOURCE, REWARD, with_options, with_placement
from cards.console import say, show_warning
from cards.errors import CardsError, SettingError, check
from cards.placement import Placement
from cards.settings import FORM
from cards.study.calibrate import plot
from cards.study.calibrate.choose import DEFAULT_COST, Constraints
from cards.study.calibrate.report import LEVELS, entropies, profile_of, rewards_by_length, to_dict
from cards.study.calibrate.run import Calibration, CalibrationRequest, CalibrationResult, Probe
from cards.study.calibrate.samples import SamplingPlan
from cards.study.prompts import read, sample
from cards.study.session import opened
from cards.study.statistics import Estimate
from cards.study.tables import Table, interval, show_tables, to_json

NO_REWARD = "A calibration needs a reward: choose one with --reward."


@with_options(SamplingPlan, "plan", "Samples")
@with_options(CalibrationRequest, "request", "Fixed settings")
@with_options(Constraints, "constraints", "Constraints")
@with_placement
def calibrate(
    prompts: Annotated[str, typer.Argument(metavar="PROMPTS", help=PROMPT_SOURCE)],
    out: Annotated[Path, typer.Option(help="Profile (.json); samples, report and plot are written next to it.")] = Path(
        "profile.json"
    ),
    form: Annotated[str, typer.Option(help=FORM)] = "auto",
    limit: Annotated[int | None, typer.Option(min=2, help="Number of prompts to sample; all if omitted.")] = None,
    model: Annotated[str, MODEL] = "tiny",
    reward: Annotated[str, REWARD] = "tiny",
    json: Annotated[bool, JSON] = False,
    *,
    plan: SamplingPlan,
    request: CalibrationRequest,
    constraints: Constraints,
    placement: Placement,
) -> None:
    """Find settings of CARDS for a model, a reward and prompts, and write them to a profile.

    The command samples responses to PROMPTS, predicts the cost, acceptance and fallbacks of each setting, selects one that
    meets the constraints, and measures it. Other commands read the profile with --profile. To resume, run the same command
    again.
    """
    if constraints == Constraints():
        constraints = Constraints(max_cost=DEFAULT_COST)
    check(reward != "none", NO_REWARD)
    check(out.suffix == ".json", f"--out must end in .json, got {str(out)!r}.")
    records = sample(read(prompts), limit, plan.seed)
    models = load_models(model, reward, "none", placement)
    if models.reward is None:
        raise SettingError(NO_REWARD)
    records = fitting(models, records, form, plan.max_tokens)
    check(len(records) > 1, f"A calibration needs at least 2 prompts, got {len(records)}.")
    samples = out.with_suffix(".samples.jsonl")
    header = {"model": model, "reward": reward, "prompts": prompts, "form": form, "limit": limit, **asdict(plan)}
    with opened(samples, header, "calibration") as session:
        work = Calibration(models, models.reward, records, plan, session, form)
        result = session.run(work.run(constraints, request), "samples", models.run)
    profile = profile_of(work, result, constraints, prompts, model, reward)
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
    console.print(f"95% interval of r* over prompts: {result.target.low:.2f} to {result.target.high:.2f}")


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
        yield Table(f"rates for {name} (95% intervals over prompts)", ["", *figures], rows)


def _figure(name: str, value: Estimate) -> str:
    if name in ("acceptance", "fallback"):
        return f"{value.mean:.0%} [{value.low:.0%}, {value.high:.0%}]"
    return interval(value)
