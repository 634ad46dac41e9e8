"""`cards calibrate`: find r*, tau_u and beta for models and prompts, and predict their cost."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cards.cli.models import load_models
from cards.cli.options import JSON, MODEL, PROMPT_SOURCE, REWARD, with_options, with_placement
from cards.console import say, show_warning
from cards.errors import CardsError, check, public_name
from cards.placement import Placement, reward_for
from cards.study.calibrate.plan import DEFAULT_COST, CalibrationRequest, Constraints
from cards.study.calibrate.samples import SamplingPlan
from cards.study.prompts import read, sample
from cards.study.session import opened
from cards.study.tables import show_headline, show_tables, to_json


@with_options(SamplingPlan, "plan", "Samples")
@with_options(CalibrationRequest, "request", "Fixed settings")
@with_options(Constraints, "constraints", "Constraints")
@with_placement
def calibrate(
    prompts: Annotated[str, typer.Option(help=PROMPT_SOURCE)],
    out: Annotated[Path, typer.Option(help="Profile (.json); samples, report and plot are written next to it.")] = Path(
        "profile.json"
    ),
    limit: Annotated[int | None, typer.Option(min=2, help="Number of prompts to sample; all if omitted.")] = None,
    model: Annotated[str, MODEL] = "tiny",
    reward: Annotated[str | None, REWARD] = None,
    json: Annotated[bool, JSON] = False,
    *,
    plan: SamplingPlan,
    request: CalibrationRequest,
    constraints: Constraints,
    placement: Placement,
) -> None:
    """Find settings of CARDS for a model, a reward and prompts, and write them to a profile.

    The command samples responses to the prompts, predicts the cost, acceptance and fallbacks of each setting, selects one that
    meets the constraints, and measures it. Other commands read the profile with --profile. To resume, run the same command
    again. The exit code is 1 if the measured rates contradict the predicted ones or the constraints.
    """
    from cards.study.calibrate import plot  # with numpy, which the help does not need
    from cards.study.calibrate.report import headline, profile_of, tables, to_dict
    from cards.study.calibrate.run import Calibration
    from cards.study.statistics import interval_name

    if constraints == Constraints():
        constraints = Constraints(max_cost=DEFAULT_COST)
    reward = reward_for(model, reward)
    check(reward != "none", "A calibration needs a reward: choose one with --reward.")
    check(out.suffix == ".json", f"--out must end in .json, got {str(out)!r}.")
    records = sample(read(prompts), limit, plan.seed)
    models = load_models(model, reward, "none", placement, check_chats=plan.check_template)
    assert models.reward is not None
    records = models.fitting(records, plan, plan.max_tokens)
    check(len(records) > 1, f"A calibration needs at least 2 prompts, got {len(records)}.")
    samples = out.with_suffix(".samples.jsonl")
    names = public_name(model), public_name(reward)
    header = {
        "model": names[0],
        "reward": names[1],
        "prompts": prompts,
        "mix": placement.mix,
        "chat_template": placement.chat_template,
        **asdict(plan),
    }
    with opened(samples, header, "calibration") as session:
        work = Calibration(models, models.reward, records, plan, session)
        result = session.run(work.run(constraints, request), "samples", models.run)
    profile = profile_of(work, result, constraints, prompts, *names, placement.mix)
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
        show_headline(headline(result), "green" if result.confirmed else "yellow")
        show_tables(tables(result))
        console = Console(highlight=False, markup=False)
        settings = ", ".join(f"{name} {value}" for name, value in result.settings.items())
        console.print(f"{'recommended' if result.confirmed else 'not confirmed'}: {settings}")
        target = result.choice.target
        console.print(f"r*: {interval_name(len(result.responses))}, {target.low:.2f} to {target.high:.2f}")
    say(f"profile: {out}, with .samples.jsonl, .report.json and .png next to it", "dim")
    if not result.confirmed:
        raise typer.Exit(1)
