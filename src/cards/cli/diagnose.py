"""`cards diagnose`: measure whether a reward can score incomplete responses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cards.cli.models import load_models
from cards.cli.options import JSON, MODEL, MODELS, OUTPUT, PROMPT_SOURCE, REWARD, with_options, with_placement
from cards.console import say
from cards.errors import check
from cards.placement import Placement, reward_for
from cards.study.diagnose.plan import DiagnosisPlan
from cards.study.prompts import read, sample
from cards.study.tables import show_headline, show_tables, to_json

COLOURS = {"good": "green", "fair": "yellow", "poor": "red", "not enough data": "yellow"}


@with_options(DiagnosisPlan, "plan")
@with_placement
def diagnose(
    prompts: Annotated[str | None, typer.Option(help=PROMPT_SOURCE)] = None,
    pairs: Annotated[Path | None, typer.Option(help="File of preference pairs: rows with prompt, chosen and rejected.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=2, help="Number of prompts to sample, and of pairs to read; all if omitted.")
    ] = None,
    model: Annotated[str, MODEL] = "tiny",
    reward: Annotated[str | None, REWARD] = None,
    gold: Annotated[str, typer.Option(help="Reward model to compare with, or none.", rich_help_panel=MODELS)] = "none",
    json: Annotated[bool, JSON] = False,
    plot: Annotated[Path | None, typer.Option(help="Write a plot to this .png file.", rich_help_panel=OUTPUT)] = None,
    *,
    plan: DiagnosisPlan,
    placement: Placement,
) -> None:
    """Measure whether a reward can score incomplete responses.

    The measurements use responses of the model to the prompts, preference pairs (--pairs), or both.
    """
    from cards.study.diagnose import pairs as preference_pairs  # with numpy, which the help does not need
    from cards.study.diagnose import plot as plots
    from cards.study.diagnose.run import Diagnosis
    from cards.study.diagnose.verdict import tables, to_dict, verdict

    check(prompts is not None or pairs is not None, "Nothing to measure: give --prompts, --pairs, or both.")
    reward = reward_for(model, reward)
    check(reward != "none", "There is no reward to diagnose: choose one with --reward.")
    records = sample(read(prompts), limit, plan.seed) if prompts is not None else []
    preferred = preference_pairs.read(pairs)[:limit] if pairs is not None else []
    models = load_models(model, reward, gold, placement, check_chats=plan.check_template)
    assert models.reward is not None
    records = models.fitting(records, plan, plan.max_tokens)
    check(len(records) + len(preferred) > 0, "There are no prompts left to measure on: give more, or lower --max-tokens.")
    work = Diagnosis(models, models.reward, records, preferred, plan)
    found = work.session.run(work.run(), runner=models.run)
    judged = verdict(found)
    if json:
        typer.echo(to_json(to_dict(found, judged), indent=2), nl=False)
    else:
        show_headline(judged.words, COLOURS[judged.grade])
        show_tables(tables(found, judged))
    if plot is not None:
        plots.save(found, plot)
        say(f"plot: {plot}", "dim")
