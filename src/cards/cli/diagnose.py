"""`cards diagnose`: is this reward fit for segments?"""

from __future__ import annotations

import json as jsons
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cards.cli.models import fitting, load_models
from cards.cli.options import CONTEXT, DEVICE, DTYPE, MODEL, MODELS, OUTPUT, REWARD, SLOTS, placed
from cards.cli.screen import one_line_warnings, say
from cards.errors import SettingError, check
from cards.sampling import Sampling
from cards.study.diagnose import pairs as preference_pairs
from cards.study.diagnose import plot as plots
from cards.study.diagnose.report import to_dict
from cards.study.diagnose.run import POSITIONS, Diagnosis, Figures
from cards.study.diagnose.verdict import LIMITS, Verdict, verdict
from cards.study.prompts import read, sample
from cards.study.tables import interval

COLOURS = {"good": "green", "fair": "yellow", "poor": "red"}


def diagnose(
    prompts: Annotated[str | None, typer.Argument(help="As for `cards bench --prompts`: a file, tiny, or a data set.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="Preference pairs: rows with prompt, chosen and rejected.")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Take this many prompts, and pairs, drawn from all.")] = None,
    answers: Annotated[int, typer.Option(min=2, help="Plain answers to a prompt.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=2, help="Most tokens of an answer.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.01, help="Of the answers.")] = 0.7,
    entropy_threshold: Annotated[float | None, typer.Option(min=0, help="tau_u (default: what the model suggests).")] = None,
    fixed: Annotated[int, typer.Option(min=1, help="Tokens of a segment of fixed length.")] = 8,
    form: Annotated[str, typer.Option(help="How prompts reach the model, as for `cards bench`.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same answers.")] = 0,
    model: Annotated[str, MODEL] = "tiny",
    reward: Annotated[str, REWARD] = "tiny",
    gold: Annotated[
        str, typer.Option(help="Reward model to hold it against, such as tiny-gold, or none.", rich_help_panel=MODELS)
    ] = "none",
    device: Annotated[str, DEVICE] = "auto",
    dtype: Annotated[str, DTYPE] = "auto",
    slots: Annotated[int | None, SLOTS] = None,
    context: Annotated[int | None, CONTEXT] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.", rich_help_panel=OUTPUT)] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw a .png.", rich_help_panel=OUTPUT)] = None,
) -> None:
    """Say whether a reward can judge incomplete answers, on the LM's answers to PROMPTS and on preference pairs."""
    check(prompts is not None or pairs is not None, "Give prompts, --pairs, or both.")
    check(reward != "none", "There is no reward to diagnose.")
    questions = sample(read(prompts), limit, seed) if prompts is not None else []
    preferred = preference_pairs.read(pairs)[:limit] if pairs is not None else []
    models = load_models(model, reward, gold, placed(device, dtype, slots, context))
    if models.reward is None:
        raise SettingError("There is no reward to diagnose.")
    questions = fitting(models, questions, form, max_tokens)
    check(len(questions) + len(preferred) > 0, "There is no prompt to answer.")
    work = Diagnosis(
        models,
        models.reward,
        questions,
        preferred,
        form=form,
        answers=answers,
        max_tokens=max_tokens,
        sampling=Sampling(temperature, 40),
        threshold=entropy_threshold,
        fixed=fixed,
        seed=seed,
    )
    with one_line_warnings():
        found = models.run(work.run())
    judged = verdict(found)
    if plot is not None:
        plots.save(found, plot)
    if json:
        typer.echo(jsons.dumps(to_dict(found, judged), indent=2, ensure_ascii=False))
    else:
        _show(found, judged)
    if plot is not None:
        say(f"plot: {plot}", "dim")


def _show(found: Figures, judged: Verdict) -> None:
    console = Console(highlight=False, markup=False)
    if found.prefixes:
        table = _table("rank correlation of incomplete answers with whole ones, within prompts", "cut by", "all", *POSITIONS)
        for rule, positions in found.prefixes.items():
            table.add_row(rule, *(interval(positions[name]["spearman"]) for name in ("all", *POSITIONS)))
        console.print(table)
    if found.preferences:
        table = _table("accuracy on preference pairs, by part of the answers", *found.preferences)
        table.add_row(*map(interval, found.preferences.values()))
        console.print(table)
    table = _table("findings", "question", "value", "good", "fair", "grade")
    for finding in judged.findings:
        good, fair = LIMITS[finding.name]
        sign = "\N{GREATER-THAN OR EQUAL TO}" if good > fair else "\N{LESS-THAN OR EQUAL TO}"
        value = "-" if finding.value is None else f"{finding.value:.2g}"
        table.add_row(finding.name, value, f"{sign} {good:g}", f"{sign} {fair:g}", finding.grade)
    console.print(table)
    console.print(judged.words, style=COLOURS[judged.grade])


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    return table
