"""`cards evaluate`: grade responses with reward models, judges and refusal counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cards.cli.arms import METHOD_HELP, arms_of
from cards.cli.bench import decode
from cards.cli.models import load_named
from cards.cli.options import MODELS, OUTPUT, with_options
from cards.console import say, show_warning
from cards.errors import UnknownNameError, check
from cards.placement import GOLD, Placement, reward_for
from cards.settings import settings_of
from cards.study.bench.plan import PROMPTS, Plan
from cards.study.bench.plan import read as read_plan
from cards.study.evaluate.judge import connect
from cards.study.evaluate.questions import QUESTIONS
from cards.study.evaluate.responses import SystemResponses, fingerprint, messages_of, read, unpaired
from cards.study.evaluate.run import HEADER, Evaluation, requests_to
from cards.study.prompts import read as read_prompts
from cards.study.session import opened
from cards.study.tables import show_headline, show_tables

if TYPE_CHECKING:
    from cards.study.evaluate.report import EvaluationReport

DECODED = ("prompts", "system", "chat_template_kwargs", "limit", "sample_seed", "seeds", "seed", "max_tokens")  # in the report
STEERED = "--{} {} steered some of these responses, so it cannot grade them: choose another reward model."
OWN = ("methods", "prompts", "form", "stop", "concurrency", "reward", "gold")  # settings with separate options, or none
DECODING, GRADING = "Decoding, as in `cards bench`", "Grading"


@with_options(Plan, "overrides", DECODING, leave_out=(*OWN, *settings_of(Placement)))
@with_options(Placement, "placed", MODELS)
def evaluate(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILES",
            help="Responses: results of `cards bench`, or files of prompts and responses (FILE or NAME=FILE).",
        ),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(help="LLM judge (repeatable): http://host/v1 or http://host/v1#MODEL.", rich_help_panel=GRADING),
    ] = None,
    ask: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Question for the judges (repeatable): {', '.join(QUESTIONS)}.",
            show_default="pair, or score for one system; also safety if prompts have groups",
            rich_help_panel=GRADING,
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, help="Maximum number of concurrent requests to a judge.", rich_help_panel=GRADING)
    ] = 8,
    reward: Annotated[
        str | None, typer.Option(help="Reward model that steers the methods and grades.", rich_help_panel=GRADING)
    ] = None,
    gold: Annotated[str | None, typer.Option(help=GOLD, rich_help_panel=GRADING)] = None,
    harm: Annotated[
        str | None, typer.Option(help="Cost model: a reward model whose high scores mean harm.", rich_help_panel=GRADING)
    ] = None,
    harm_above: Annotated[
        float, typer.Option(help="Scores of the cost model above this count as harmful.", rich_help_panel=GRADING)
    ] = 0.0,
    prompts: Annotated[str | None, typer.Option(help=PROMPTS, rich_help_panel=DECODING)] = None,
    method: Annotated[list[str] | None, typer.Option("--method", "-m", help=METHOD_HELP, rich_help_panel=DECODING)] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Plan of `cards bench`, for all other settings.", rich_help_panel=DECODING)
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="System that the others are compared with.",
            show_default="vanilla, otherwise the first system",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Journal of judgements (.jsonl); finished ones are not repeated.", rich_help_panel=OUTPUT)
    ] = Path("evaluate.jsonl"),
    *,
    overrides: dict[str, Any],
    placed: dict[str, Any],
) -> None:
    """Grade responses with reward models, LLM judges and refusal counts.

    Responses are read from FILES, or decoded with methods (-m) on --prompts. Systems are compared only on prompts
    that both have responded to. Judges see each pair in both orders, without names. Each judgement is written immediately. To
    resume, run the same command again. The report is written next to the journal.
    """
    from cards.study.evaluate.report import EvaluationReport  # with numpy, which the help does not need
    from cards.study.evaluate.verdicts import Judgements

    check(out.suffix == ".jsonl", f"--out must end in .jsonl, got {str(out)!r}.")
    check(bool(files or method or plan), "There is nothing to grade: give files of responses, or methods (-m) to decode some.")
    for name in ask or ():
        if name not in QUESTIONS:
            raise UnknownNameError("question", name, QUESTIONS)
    check(bool(judge) or not ask, "--ask needs a judge: add --judge.")
    named: dict[str, Any] = {"methods": tuple(method or ()), "prompts": prompts, "reward": reward, "gold": gold}
    chosen = read_plan(plan) if plan else Plan()
    chosen = replace(chosen, **overrides, **placed, **{name: value for name, value in named.items() if value})
    judges = connect(judge or ())
    sources, failures, about = list(files or ()), list[str](), dict[str, Any]()
    if method or plan:
        chosen = replace(
            chosen, reward=reward_for(chosen.model, chosen.reward, [arm.method for arm in arms_of(chosen.methods)])
        )
        check(chosen.gold == "none" or chosen.gold != chosen.reward, STEERED.format("gold", chosen.gold))
        decoded = out.with_name(f"{out.stem}-answers.jsonl")
        failures = decode(chosen, decoded, "vanilla").errors
        sources.append(str(decoded))
        about = {name: getattr(chosen, name) for name in DECODED}
    answers = read(sources, _groups(prompts) if prompts and files else {})
    against = baseline or ("vanilla" if "vanilla" in answers.systems else next(iter(answers.systems)))
    if against not in answers.systems:
        raise UnknownNameError("baseline", against, answers.systems)
    questions = ask or (_default_questions(answers) if judge else [])
    rewards, ungraded = _rewards(answers, {"reward": reward, "gold": gold, "harm": harm})
    with opened(out, HEADER, "evaluation") as session:
        loaded = load_named({f"--{role}": rewards[role] for role in ungraded}, chosen) if ungraded else {}
        rewards |= {role: loaded[f"--{role}"].name for role in ungraded}
        work = Evaluation(session, concurrency)

        async def grade() -> None:
            for one in loaded.values():
                await work.grade(one, answers.all)
            for one in judges:
                await work.judge(one, requests_to(one.name, questions, answers, against))

        session.run(grade(), "judgements")
        judgements, names = Judgements.of(session.rows), [one.name for one in judges]
        evaluated = EvaluationReport(answers, against, judgements, names, questions, rewards, frozenset(ungraded), harm_above)
        _report(evaluated, out, {"answers": ", ".join(sources), "decoded": about})
    count = len(failures) + len(session.errors)
    check(not count, f"{count} failures: the first errors are above, and their results are missing. Run the command again.")


def _groups(data: str) -> dict[str, str]:
    """Return the group of each prompt of the data, by fingerprint."""
    return {fingerprint(messages_of(record.prompt)): record.group for record in read_prompts(data)}


def _default_questions(answers: SystemResponses) -> list[str]:
    grouped = any(answer.group for answer in answers.all)
    return ["pair" if len(answers.systems) > 1 else "score", *(["safety"] if grouped else [])]


def _rewards(answers: SystemResponses, given: Mapping[str, str | None]) -> tuple[dict[str, str], set[str]]:
    """Return the reward model of each role, and the roles in which the responses are not graded yet."""
    rewards, ungraded = dict[str, str](), set[str]()
    for role, name in given.items():
        known = answers.graders(role)
        check(role == "reward" or name not in answers.steering, STEERED.format(role, name))
        if name == "none":
            continue
        if name is not None:
            rewards[role] = name
            ungraded |= {role} if known != {name} else set()
        elif len(known) == 1 and (only := next(iter(known))) is not None:
            rewards[role] = only
        elif known != {None}:
            show_warning(f"Not all responses have a {role} from the same model: choose one with --{role} to grade them all.")
    return rewards, ungraded


def _report(evaluated: EvaluationReport, out: Path, about: dict[str, Any]) -> None:
    """Print tables, write them next to the journal, and warn about prompts that they leave out."""
    from cards.study.evaluate.tables import headline, tables, write
    from cards.study.statistics import CONFIDENCE, RESAMPLES, SEED

    figures, answers = evaluated.figures(), evaluated.responses
    missing = {s: unpaired(answers.systems[s], answers.systems[evaluated.baseline]) for s in answers.systems}
    missing = {system: prompts for system, prompts in missing.items() if prompts}
    for system, prompts in missing.items():
        listed = ", ".join(f"{prompt[:40]!r}" for prompt in prompts[:5]) + (", ..." if len(prompts) > 5 else "")
        show_warning(
            f"{len(prompts)} prompts have a response of only one of {system!r} and {evaluated.baseline!r} and are left out of "
            f"their comparison: {listed}"
        )
    about |= {
        "baseline": evaluated.baseline,
        **evaluated.rewards,
        "judges": list(evaluated.judges),
        "questions": [QUESTIONS[name].version for name in evaluated.questions],
        "intervals": {"confidence": CONFIDENCE, "resamples": RESAMPLES, "seed": SEED},
        "unpaired": missing,
    }
    show_headline(headline(figures, evaluated.baseline, evaluated.held_out))
    show_tables(tables(figures))
    say(f"report: {', '.join(map(str, write(about, figures, out)))}", "dim")
