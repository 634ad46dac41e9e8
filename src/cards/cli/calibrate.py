"""`cards calibrate`: which r*, tau_u and beta for these models and prompts, and what they will cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cards.cli.models import fitting, load_models
from cards.cli.options import MODEL, OUTPUT, REWARD, with_placement
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
from cards.study.statistics import Estimate
from cards.study.tables import Table, interval, show_tables, to_json

WISH, FIXED, DRAWN = "The wish (default: --max-cost 3)", "Fixed beforehand", "What is drawn"


@with_placement
def calibrate(
    prompts: Annotated[str, typer.Argument(help="As for `cards bench --prompts`: a file, tiny, or a data set.")],
    out: Annotated[Path, typer.Option(help="The profile; samples, report and plot are written beside it.")] = Path(
        "profile.json"
    ),
    max_cost: Annotated[
        float | None, typer.Option(help="FLOPs of an answer, at most so many times those of a plain one.", rich_help_panel=WISH)
    ] = None,
    top: Annotated[
        float | None,
        typer.Option(
            help="As much reward as this share of the LM's own answers, 0.1 for the best tenth, at the least cost.",
            rich_help_panel=WISH,
        ),
    ] = None,
    max_fallback: Annotated[
        float | None, typer.Option(help="Share of segments that may be taken untested, 0.02 for 2%.", rich_help_panel=WISH)
    ] = None,
    entropy_threshold: Annotated[
        float | None, typer.Option(min=0, help="tau_u (default: found from the entropies).", rich_help_panel=FIXED)
    ] = None,
    segment_tokens: Annotated[
        float | None,
        typer.Option(
            min=1, help="Tokens of a mean segment (default: an eighth of the mean answer, at least 8).", rich_help_panel=FIXED
        ),
    ] = None,
    target: Annotated[float | None, typer.Option(help="r*.", rich_help_panel=FIXED)] = None,
    beta: Annotated[float | None, typer.Option(help="Softness of the soft test.", rich_help_panel=FIXED)] = None,
    alpha: Annotated[
        float | None, typer.Option(min=0, max=1, help="Where the threshold starts.", rich_help_panel=FIXED)
    ] = None,
    max_rejections: Annotated[int, typer.Option(min=1, help="Rejections before a fallback.", rich_help_panel=FIXED)] = 20,
    temperature: Annotated[float, typer.Option(min=0.01, help="Of the proposals.", rich_help_panel=FIXED)] = 0.7,
    top_k: Annotated[int, typer.Option(min=1, help="Of the proposals.", rich_help_panel=FIXED)] = 40,
    top_p: Annotated[float, typer.Option(help="Of the proposals.", rich_help_panel=FIXED)] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.", rich_help_panel=FIXED)] = 128,
    form: Annotated[
        str, typer.Option(help="How prompts reach the model, as for `cards bench`.", rich_help_panel=FIXED)
    ] = "auto",
    limit: Annotated[
        int | None, typer.Option(min=2, help="Take this many prompts, drawn from all.", rich_help_panel=DRAWN)
    ] = None,
    answers: Annotated[int, typer.Option(min=2, help="Plain answers to a prompt.", rich_help_panel=DRAWN)] = 16,
    nodes: Annotated[int, typer.Option(min=1, help="Prefixes that are followed at a position.", rich_help_panel=DRAWN)] = 4,
    probes: Annotated[
        int, typer.Option(min=0, help="Settings that are tried, one answer to a prompt.", rich_help_panel=DRAWN)
    ] = 2,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same.", rich_help_panel=DRAWN)] = 0,
    model: Annotated[str, MODEL] = "tiny",
    reward: Annotated[str, REWARD] = "tiny",
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.", rich_help_panel=OUTPUT)] = False,
    *,
    placed: dict[str, Any],
) -> None:
    """Find settings of CARDS for a model and a reward on PROMPTS, and write them to a profile.

    Samples once, predicts cost, acceptance and fallbacks of every setting, chooses one for the wish and tries it. `generate`,
    `compare`, `bench` and others take the profile with --profile. Run the same command again to go on where it stopped.
    """
    constraints = Constraints(max_cost if (max_cost, top, max_fallback) != (None, None, None) else 3.0, top, max_fallback)
    check(reward != "none", "A calibration needs a reward.")
    check(out.suffix == ".json", f"--out must end in .json, not {str(out)!r}.")
    check(entropy_threshold is None or segment_tokens is None, "Give --entropy-threshold or --segment-tokens, not both.")
    plan = SamplingPlan(Sampling(temperature, top_k, top_p), max_tokens, answers, nodes, max_rejections + 1, seed)
    request = CalibrationRequest(constraints, entropy_threshold, segment_tokens, target, beta, alpha, probes)
    records = sample(read(prompts), limit, seed)
    models = load_models(model, reward, "none", Placement(**placed))
    if models.reward is None:
        raise SettingError("A calibration needs a reward.")
    records = fitting(models, records, form, max_tokens)
    check(len(records) > 1, "A calibration needs at least two prompts.")
    samples = out.with_suffix(".samples.jsonl")
    made: dict[str, Any] = {
        "model": model,
        "reward": reward,
        "prompts": prompts,
        "form": form,
        "limit": limit,
        "max_tokens": max_tokens,
    }
    made |= {"answers": answers, "nodes": nodes, "max_rejections": max_rejections, "seed": seed}
    made |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    with opened(samples, made, "calibration") as session:
        work = Calibration(models, models.reward, records, plan, session, form)
        found = session.run(work.run(request), "samples", models.run)
    profile = profile_of(work, found, request, prompts, model, reward)
    profile.write(out)
    report = to_json(to_dict(found, profile), indent=2)
    out.with_suffix(".report.json").write_text(report, encoding="utf-8")
    try:
        plot.save(found, out.with_suffix(".png"))
    except CardsError as error:
        show_warning(str(error))
    if json:
        typer.echo(report, nl=False)
    else:
        _show(found)
    say(f"profile: {out}; beside it .samples.jsonl, .report.json and .png", "dim")


def _show(found: CalibrationResult) -> None:
    show_tables(_tables(found), compact=True)
    console = Console(highlight=False, markup=False)
    chosen = ", ".join(f"{name} {value}" for name, value in found.settings.items())
    console.print(f"recommended: {chosen}")
    console.print(f"r* on other prompts would have been {found.target.low:.2f} to {found.target.high:.2f} (95%)")


def _tables(found: CalibrationResult) -> Iterator[Table]:
    heads = [f"{level:.0%}" for level in LEVELS]
    rows = []
    for row in rewards_by_length(found.responses):
        correlation = "" if row["correlation"] is None or row["tokens"] is None else f"{row['correlation']:.2f}"
        values = [f"{q:.2f}" for q in row["quantiles"]]
        rows.append([str(row["tokens"] or "end"), str(row["texts"]), *values, correlation])
    columns = ["tokens", "texts", *heads, "correlation with the end"]
    yield Table("rewards of plain answers, by tokens so far", columns, rows)
    if levels := entropies(found.responses):
        yield Table("entropy of the next token (nats)", heads, [[f"{q:.2f}" for q in levels]])
    rows = []
    for option in found.options:
        values = [f"{x:.1f}" for x in (option.tokens, *option.quartiles, option.segments)]
        rows.append([f"{option.threshold:.2f}", *values, "chosen" if option == found.lengths else ""])
    yield Table("segments by tau_u", ["tau_u", "mean tokens", "25%", "50%", "75%", "segments of an answer", ""], rows)
    shown: Sequence[Probe | None] = found.probes or [None]
    for probe in shown:
        settings = found.settings if probe is None else probe.settings
        name = ", ".join(f"{key} {settings[key]}" for key in ("target", "beta", "acceptance", "alpha") if key in settings)
        figures = {"predicted": found.choice.rates if probe is None else probe.predicted}
        figures |= {} if probe is None else {"measured": probe.measured}
        rows = [[rate, *(_figure(rate, values[rate]) for values in figures.values())] for rate in found.choice.rates]
        yield Table(f"what to expect of {name} (95% intervals over prompts)", ["", *figures], rows)


def _figure(name: str, value: Estimate) -> str:
    if name in ("acceptance", "fallback"):
        return f"{value.mean:.0%} [{value.low:.0%}, {value.high:.0%}]"
    return interval(value)
