"""`cards bench`: prompts x methods x budgets x seeds, to a results file and a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from cards.boundaries import unescape
from cards.cli.arms import METHOD_HELP, arms_of
from cards.cli.models import load_models
from cards.cli.options import MODEL, MODELS, OUTPUT, REWARD, with_placement
from cards.cli.profile import PROFILE, with_profile
from cards.console import show_warning, stderr_console
from cards.errors import CardsError, UnknownNameError, check
from cards.study.bench.plan import PRESETS, Plan, preset, read
from cards.study.bench.plot import save
from cards.study.bench.report import report
from cards.study.bench.run import Bench, header
from cards.study.bench.tables import tables, to_csv, to_json, to_markdown
from cards.study.datasets import DATASETS
from cards.study.journal import Journal
from cards.study.prompts import read as read_prompts
from cards.study.session import Session, opened
from cards.study.tables import show_tables

PLAN = "The plan (each option replaces the plan's own)"
PROMPTS = (
    f"tiny, a data set of the field ({', '.join(DATASETS)}), NAME=FILE for one in a file, or a file: .jsonl, .json, "
    ".csv (or with .gz), or a prompt a line."
)
LIMIT = "Take this many prompts, drawn from all."
SAMPLE = "Seed of that draw."


@with_placement
def bench(
    preset_name: Annotated[str | None, typer.Option("--preset", help=f"A plan by name: {', '.join(PRESETS)}.")] = None,
    plan: Annotated[Path | None, typer.Option(help="A plan in a TOML file.")] = None,
    report_of: Annotated[Path | None, typer.Option("--report", help="Run nothing: report on this results file.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Results file; what it has is not run again (default: bench-PRESET.jsonl).")
    ] = None,
    method: Annotated[list[str] | None, typer.Option("--method", "-m", help=METHOD_HELP, rich_help_panel=PLAN)] = None,
    prompts: Annotated[str | None, typer.Option(help=PROMPTS, rich_help_panel=PLAN)] = None,
    form: Annotated[
        str | None, typer.Option(help="How prompts reach the model: auto, chat, dialogue or raw.", rich_help_panel=PLAN)
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help=LIMIT, rich_help_panel=PLAN)] = None,
    sample_seed: Annotated[int | None, typer.Option(min=0, help=SAMPLE, rich_help_panel=PLAN)] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Answers to each prompt.", rich_help_panel=PLAN)] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The first seed.", rich_help_panel=PLAN)] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of an answer.", rich_help_panel=PLAN)] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End answers before this text (repeatable; \\n: new line).", rich_help_panel=PLAN)
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Most answers decoded at once (default: --slots).", rich_help_panel=PLAN)
    ] = None,
    model: Annotated[str | None, MODEL] = None,
    reward: Annotated[str | None, REWARD] = None,
    gold: Annotated[str | None, typer.Option(help="Reward model that only grades, or none.", rich_help_panel=MODELS)] = None,
    profile: Annotated[Path | None, PROFILE] = None,
    baseline: Annotated[str, typer.Option(help="What others are compared with.", rich_help_panel=OUTPUT)] = "vanilla",
    tolerance: Annotated[
        float, typer.Option(min=0, help="Rewards at most this far apart are a tie.", rich_help_panel=OUTPUT)
    ] = 0.0,
    *,
    placed: dict[str, Any],
) -> None:
    """Compare methods on many prompts: quality, cost and text of their answers, as tables and a plot.

    Without --preset and --plan the preset `tiny` runs, on the embedded models. Results are written as they come; run the
    same command again to go on where it stopped. The report lies beside the results, as .md, .csv, .json, .png and .svg.
    """
    if report_of is not None:
        _report(report_of, Journal.load(report_of), baseline, tolerance)
        return
    check(preset_name is None or plan is None, "Give --preset or --plan, not both.")
    check(
        out is None or out.suffix == ".jsonl", f"--out must end in .jsonl, not {str(out)!r}: the report is written beside it."
    )
    named: Plan = read(plan) if plan else preset(preset_name or "tiny")
    given: dict[str, Any] = {
        "methods": tuple(method) if method else None,
        "stop": tuple(unescape(s) for s in stop) if stop else None,
        **{"prompts": prompts, "form": form, "limit": limit, "sample_seed": sample_seed},
        **{"seeds": seeds, "seed": seed, "max_tokens": max_tokens},
        **{"concurrency": concurrency, "model": model, "reward": reward, "gold": gold},
        **placed,
    }
    chosen = replace(named, **{name: value for name, value in given.items() if value is not None})
    chosen = replace(chosen, methods=tuple(with_profile(profile, chosen.methods, chosen.model, chosen.reward)))
    name = plan.stem if plan else preset_name or "tiny"
    path = out or Path(f"bench-{name}.jsonl")
    session = decode(chosen, path, baseline)
    if session.rows:
        _report(path, session.journal, baseline, tolerance)
    check(not session.errors, f"{len(session.errors)} failures, of which the first are above; those answers are missing.")


def decode(plan: Plan, path: Path, baseline: str) -> Session:
    """Add to a results file what it lacks of a plan; return the session, with what went wrong with responses."""
    arms = arms_of(plan.methods)
    records = read_prompts(plan.prompts)
    models = load_models(plan.model, plan.reward, plan.gold, plan.placement)
    with opened(path, header(plan, models), "bench") as session:
        known = {"vanilla", *(arm.label for arm in arms), *(row["label"] for row in session.rows)}
        if baseline not in known:
            raise UnknownNameError("baseline", baseline, known)
        session.run(Bench(plan, records, models, session).run(arms), "answers", models.run)
    return session


def _report(path: Path, results: Journal, baseline: str, tolerance: float) -> None:
    """Tables on standard output; tables and plot beside the results."""
    found = report(results.header, results.rows, baseline, tolerance)
    show_tables(tables(found))
    written = []
    for suffix, text in ((".md", to_markdown(found)), (".csv", to_csv(found)), (".json", to_json(found))):
        written.append(path.with_suffix(suffix))
        written[-1].write_text(text, encoding="utf-8")
    try:
        written += save(found, path.with_suffix(""))
    except CardsError as error:
        show_warning(str(error))
    stderr_console().print(f"report: {', '.join(map(str, written))}", style="dim", soft_wrap=True)
