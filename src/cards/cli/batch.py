"""`cards batch`: a file of prompts in, a file of answers out."""

from __future__ import annotations

import asyncio
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cards.batch.job import BatchJob, opened
from cards.batch.journal import BatchJournal
from cards.batch.progress import BatchProgress
from cards.batch.rows import SUFFIXES, RowReader
from cards.batch.run import run
from cards.batch.work import BatchOptions, Outcome, RowDecoder
from cards.boundaries import unescape
from cards.cli.generate import load
from cards.cli.options import MODEL, OUTPUT, REWARD, with_placement
from cards.cli.profile import PROFILE, profiled
from cards.cli.settings import method_of, recorded, with_settings
from cards.console import one_line_warnings, say, show_warning, stderr_console
from cards.decoder import HIGH_FALLBACK
from cards.errors import UnreachableTargetWarning, check
from cards.placement import Placement

RAY = "Many machines"
FORMS = ", ".join(SUFFIXES)


@with_settings
@with_placement
def batch(
    source: Annotated[Path, typer.Argument(metavar="IN", help=f"Rows with a prompt or messages: {FORMS}.")],
    out: Annotated[Path, typer.Argument(help=f"Their answers, in the same order: {FORMS}.")],
    method: Annotated[str, typer.Option(help="Decoding method; `cards methods` lists them.")] = "cards",
    seed: Annotated[int, typer.Option(min=0, help="Row i has this seed + i, unless it names one.")] = 0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer, unless its row names them.")] = 128,
    stop: Annotated[list[str] | None, typer.Option(help="End answers before this text (repeatable; \\n: new line).")] = None,
    prompt_field: Annotated[str | None, typer.Option(help="Field with the prompt, text or messages.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue texts as they stand, without chat template.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try the rows again that failed before.")] = False,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Most answers decoded at once (default: --slots).")] = None,
    model: Annotated[str, MODEL] = "tiny",
    reward: Annotated[str, REWARD] = "tiny",
    profile: Annotated[Path | None, PROFILE] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Write all of a result, segments and costs.", rich_help_panel=OUTPUT)
    ] = False,
    prefix: Annotated[
        str, typer.Option(help="Put before the names of the fields that the output adds.", rich_help_panel=OUTPUT)
    ] = "",
    ray: Annotated[bool, typer.Option("--ray", help="Decode on a Ray cluster.", rich_help_panel=RAY)] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(help="Of the cluster (default: RAY_ADDRESS, else the one here, else a new one).", rich_help_panel=RAY),
    ] = None,
    ray_workers: Annotated[int, typer.Option(min=1, help="Decoders on the cluster.", rich_help_panel=RAY)] = 1,
    ray_gpus: Annotated[float, typer.Option(min=0, help="GPUs of each of them.", rich_help_panel=RAY)] = 0,
    *,
    placed: dict[str, Any],
    **settings: str | None,
) -> None:
    """Answer the prompts of IN and write them to OUT, many at a time.

    Run the same command again to go on where it stopped, however it stopped. Rows that fail go to OUT's .errors.jsonl with
    the reason, and make the exit code 1.
    """
    check(ray or (ray_address is None and ray_workers == 1 and not ray_gpus), "--ray-... options need --ray.")
    chosen = method_of(method, profiled(profile, method, model, reward, settings))
    reward = reward if "reward" in chosen.needed else "none"
    placement = Placement(**placed)
    stops = tuple(unescape(s) for s in stop or ())
    shape = BatchOptions(prompt_field, raw, seed, max_tokens, stops, full, prefix)
    made = {"model": model, "reward": reward, **recorded(chosen), **placement.record, **asdict(shape)}

    def here(numbers: Sequence[int], journal: BatchJournal, report: BatchProgress) -> bool:
        work = RowDecoder(load(model, reward, chosen, placement), shape)
        return _watched(work, RowReader(source), numbers, _both(journal, report), concurrency or work.decoder.engine.rows)

    def there(numbers: Sequence[int], journal: BatchJournal, report: BatchProgress) -> bool:
        from cards.integrations.ray_data import Cluster, Recipe

        recipe = Recipe(model, reward, chosen, placement, shape, concurrency)
        cluster = Cluster(ray_address, ray_workers, ray_gpus)
        return _taken(cluster.outcomes(recipe, source, numbers), _both(journal, report))

    with opened(source, out, made, shape.row) as job, one_line_warnings(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreachableTargetWarning)  # shown once, for the whole batch
        _batch(job, there if ray else here, retry_failed)


Decode = Callable[[Sequence[int], BatchJournal, BatchProgress], bool]  # whether it came to its end


def _batch(job: BatchJob, decode: Decode, retry_failed: bool) -> None:
    failed, whole = job.failed, True
    if retry_failed and failed:
        numbers, merge = job.merge()
        report = BatchProgress(failed, 0, 0, stderr_console())
        with suppress(InterruptedError), merge, report:
            whole = decode(numbers, merge, report)
            if not whole:
                raise InterruptedError  # leaves the files as they were
            failed = report.failed
    if whole and job.left:
        with BatchProgress(job.total, job.total - len(job.left), failed, stderr_console()) as report, job.journal() as journal:
            whole = decode(job.left, journal, report)
        failed = report.failed
        rate = report.usage.fallback_rate
        if rate is not None and rate > HIGH_FALLBACK:
            show_warning(
                f"{rate:.0%} of the segments were taken untested: the target reward looks out of reach; lower --target."
            )
    if not whole:
        say(f"interrupted: what is done is in {job.files.responses}; the same command goes on from there", "dim")
        raise typer.Exit(130)
    job.finish()
    say(f"{job.total - failed:,} answers are in {job.out}", "dim")
    if failed:
        say(f"{failed:,} rows failed: see {job.files.failures}, and --retry-failed", "red")
        raise typer.Exit(1)


def _watched(
    work: RowDecoder, reader: RowReader, numbers: Sequence[int], write: Callable[[Outcome], None], concurrency: int
) -> bool:
    """Decode here. Ctrl-C or SIGTERM lets the rows under way finish; a second one does not."""

    async def watched() -> bool:
        stop, loop, task = asyncio.Event(), asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def interrupt() -> None:
            if stop.is_set():
                task.cancel()
            else:
                stop.set()
                say("finishing the rows under way; once more to leave them", "dim")

        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(NotImplementedError):  # Windows
                loop.add_signal_handler(number, interrupt)
        with suppress(asyncio.CancelledError):
            await run(work, reader, numbers, write, concurrency, stop)
        return not stop.is_set()

    return asyncio.run(watched())


def _taken(outcomes: Iterator[Outcome], write: Callable[[Outcome], None]) -> bool:
    try:
        for outcome in outcomes:
            write(outcome)
    except KeyboardInterrupt:
        return False
    return True


def _both(journal: BatchJournal, report: BatchProgress) -> Callable[[Outcome], None]:
    def write(outcome: Outcome) -> None:
        journal.write(outcome)
        report.add(outcome)

    return write
