"""`cards bench`: prompts x methods x budgets x seeds, to a results file and a report."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table as Screen

from cards.boundaries import unescape
from cards.cli.arms import METHOD_HELP, arms_of
from cards.cli.models import load_models
from cards.cli.options import CONTEXT, DEVICE, DTYPE, MODEL, MODELS, OUTPUT, REWARD, SLOTS
from cards.cli.profile import PROFILE, with_profile
from cards.cli.screen import messages, one_line_warnings, say, show_error, show_warning
from cards.errors import CardsError, UnknownNameError, check
from cards.files import alone
from cards.study.bench.plan import PRESETS, Plan, preset, read
from cards.study.bench.plot import save
from cards.study.bench.report import report
from cards.study.bench.results import Results
from cards.study.bench.run import Bench, header
from cards.study.datasets import DATASETS
from cards.study.prompts import read as read_prompts
from cards.study.tables import Table, tables, to_csv, to_json, to_markdown

PLAN = "The plan (each option replaces the plan's own)"
PROMPTS = (
    f"tiny, a data set of the field ({', '.join(DATASETS)}), NAME=FILE for one in a file, or a file: .jsonl, .json, "
    ".csv (or with .gz), or a prompt a line."
)
LIMIT = "Take this many prompts, drawn from all."
SAMPLE = "Seed of that draw."


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
    device: Annotated[str | None, DEVICE] = None,
    dtype: Annotated[str | None, DTYPE] = None,
    slots: Annotated[int | None, SLOTS] = None,
    context: Annotated[int | None, CONTEXT] = None,
    profile: Annotated[Path | None, PROFILE] = None,
    baseline: Annotated[str, typer.Option(help="What others are compared with.", rich_help_panel=OUTPUT)] = "vanilla",
    tolerance: Annotated[
        float, typer.Option(min=0, help="Rewards at most this far apart are a tie.", rich_help_panel=OUTPUT)
    ] = 0.0,
) -> None:
    """Compare methods on many prompts: quality, cost and text of their answers, as tables and a plot.

    Without --preset and --plan the preset `tiny` runs, on the embedded models. Results are written as they come; run the
    same command again to go on where it stopped. The report lies beside the results, as .md, .csv, .json, .png and .svg.
    """
    if report_of is not None:
        results = Results.load(report_of)
        _report(results, baseline, tolerance)
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
        **{"device": device, "dtype": dtype, "slots": slots, "context": context},
    }
    chosen = replace(named, **{name: value for name, value in given.items() if value is not None})
    chosen = replace(chosen, methods=tuple(with_profile(profile, chosen.methods, chosen.model, chosen.reward)))
    name = plan.stem if plan else preset_name or "tiny"
    results, errors = decode(chosen, out or Path(f"bench-{name}.jsonl"), baseline)
    if results.rows:
        _report(results, baseline, tolerance)
    check(not errors, f"{len(errors)} failures, of which the first are above; those answers are missing.")


def decode(plan: Plan, path: Path, baseline: str) -> tuple[Results, list[str]]:
    """Adds to a results file what it lacks of a plan, and says what went wrong with answers, the first of it on the screen."""
    arms = arms_of(plan.methods)
    questions = read_prompts(plan.prompts)
    models = load_models(plan.model, plan.reward, plan.gold, plan.placing)
    with alone(path, "bench"):
        results = Results.open(path, header(plan, models))
        known = {"vanilla", *(arm.label for arm in arms), *(row["label"] for row in results.rows)}
        if baseline not in known:
            raise UnknownNameError("baseline", baseline, known)
        work, before = Bench(plan, questions, models, results), len(results.rows)
        try:
            with one_line_warnings(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", r"\d+% of the segments were taken untested")  # the report has their share
                models.run(work.run(arms))
        except KeyboardInterrupt:
            say(f"interrupted: {len(results.rows)} answers are in {results.path}; the same command goes on from there", "dim")
            raise
    say(f"{len(results.rows) - before} answers added to {results.path}, {before} were there", "dim")
    for error in work.errors[:5]:
        show_error(error)
    return results, work.errors


def _report(results: Results, baseline: str, tolerance: float) -> None:
    """Tables on standard output; tables and plot beside the results."""
    found = report(results.header, results.rows, baseline, tolerance)
    show_tables(tables(found))
    written = []
    for suffix, text in ((".md", to_markdown(found)), (".csv", to_csv(found)), (".json", to_json(found))):
        written.append(results.path.with_suffix(suffix))
        written[-1].write_text(text, encoding="utf-8")
    try:
        written += save(found, results.path.with_suffix(""))
    except CardsError as error:
        show_warning(str(error))
    messages().print(f"report: {', '.join(map(str, written))}", style="dim", soft_wrap=True)


def show_tables(tables: Iterable[Table]) -> None:
    """On standard output."""
    console = Console(highlight=False, markup=False)
    for table in tables:
        shown = Screen(title=table.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        shown.add_column(table.columns[0], overflow="fold", min_width=16)
        for column in table.columns[1:]:
            shown.add_column(column, justify="right", no_wrap=True)
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
        console.print()
