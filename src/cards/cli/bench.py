"""`cards bench`: run prompts x methods x budgets x seeds, and write results and a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from cards.cli.arms import METHOD_HELP, arms_of
from cards.cli.models import load_models
from cards.cli.options import MODELS, OUTPUT, with_options
from cards.cli.profile import PROFILE, with_profile
from cards.console import say, show_warning
from cards.errors import CardsError, UnknownNameError, check
from cards.placement import Placement, reward_for
from cards.settings import settings_of
from cards.study.bench.plan import PRESETS, Plan, preset, read
from cards.study.bench.run import Bench, header
from cards.study.journal import Journal
from cards.study.prompts import read as read_prompts
from cards.study.session import Session, opened
from cards.study.tables import show_tables

PLAN = "Plan (options override the plan)"


@with_options(Plan, "overrides", PLAN, leave_out=("methods", *settings_of(Placement)))
@with_options(Placement, "placed", MODELS)
def bench(
    preset_name: Annotated[str | None, typer.Option("--preset", help=f"Built-in plan: {', '.join(PRESETS)}.")] = None,
    plan: Annotated[Path | None, typer.Option(help="Plan in a TOML file.")] = None,
    report_of: Annotated[
        Path | None, typer.Option("--report", help="Report on this results file, without running anything.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Results file (.jsonl); its responses are not decoded again.", show_default="bench-PLAN.jsonl"),
    ] = None,
    method: Annotated[list[str] | None, typer.Option("--method", "-m", help=METHOD_HELP, rich_help_panel=PLAN)] = None,
    profile: Annotated[Path | None, PROFILE] = None,
    baseline: Annotated[
        str, typer.Option(help="Method that the others are compared with.", rich_help_panel=OUTPUT)
    ] = "vanilla",
    tolerance: Annotated[
        float, typer.Option(min=0, help="Maximum difference of rewards that counts as a tie.", rich_help_panel=OUTPUT)
    ] = 0.0,
    *,
    overrides: dict[str, Any],
    placed: dict[str, Any],
) -> None:
    """Compare methods on many prompts: tables of reward, cost and text statistics, and a plot.

    Without --preset and --plan, the preset `tiny` runs on the embedded models. Each result is written immediately. To resume,
    run the same command again. The report is written next to the results, as .md, .csv, .json, .png and .svg.
    """
    if report_of is not None:
        _report(report_of, Journal.load(report_of), baseline, tolerance)
        return
    check(preset_name is None or plan is None, "Give --preset or --plan, not both.")
    check(out is None or out.suffix == ".jsonl", f"--out must end in .jsonl, got {str(out)!r}.")
    base: Plan = read(plan) if plan else preset(preset_name or "tiny")
    chosen = replace(base, **overrides, **placed, methods=tuple(method or base.methods))
    methods = with_profile(profile, chosen.methods, chosen.model, chosen.reward, chosen.mix, chosen.max_tokens)
    chosen = replace(chosen, methods=tuple(methods))
    name = plan.stem if plan else preset_name or "tiny"
    path = out or Path(f"bench-{name}.jsonl")
    session = decode(chosen, path, baseline)
    if session.rows:
        _report(path, session.journal, baseline, tolerance)
    check(
        not session.errors,
        f"{len(session.errors)} responses failed and are missing; the first errors are above. Run the command again.",
    )


def decode(plan: Plan, path: Path, baseline: str) -> Session:
    """Decode the responses of a plan that a results file lacks. The returned session has the errors of failed responses."""
    arms = arms_of(plan.methods)
    reward = reward_for(plan.model, plan.reward, [arm.method for arm in arms])
    plan = replace(plan, reward=reward)
    records = read_prompts(plan.prompts)
    models = load_models(plan.model, reward, plan.gold, plan, [arm.method for arm in arms], plan.check_template)
    with opened(path, header(plan, models), "bench") as session:
        known = {"vanilla", *(arm.label for arm in arms), *(row["label"] for row in session.rows)}
        if baseline not in known:
            raise UnknownNameError("baseline", baseline, known)
        session.run(Bench(plan, records, models, session).run(arms), "responses", models.run)
    return session


def _report(path: Path, results: Journal, baseline: str, tolerance: float) -> None:
    """Print tables, and write tables and a plot next to the results."""
    from cards.study.bench.plot import save  # with numpy, which the help does not need
    from cards.study.bench.report import report
    from cards.study.bench.tables import tables, write

    found = report(results.header, results.rows, baseline, tolerance)
    show_tables(tables(found))
    written = write(found, path)
    try:
        written += save(found, path.with_suffix(""))
    except CardsError as error:
        show_warning(str(error))
    say(f"report: {', '.join(map(str, written))}", "dim")
