"""`cards batch`: decode a file of prompts into a file of responses."""

from __future__ import annotations

import asyncio
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from cards.batch.job import BatchJob, opened
from cards.batch.journal import BatchJournal
from cards.batch.progress import BatchProgress
from cards.batch.rows import INPUT_SUFFIXES, SUFFIXES, RowReader, rows, stored, suffix
from cards.batch.run import run
from cards.batch.work import BatchOptions, Outcome, RowDecoder
from cards.cli.models import load_decoder
from cards.cli.options import METHOD, METHOD_FLAGS, MODEL, REWARD, SHAPING, with_options, with_placement
from cards.cli.profile import PROFILE, profiled
from cards.cli.settings import method_of, recorded, with_settings
from cards.console import one_line_warnings, say, show_warning, stderr_console
from cards.decoder import unreachable
from cards.errors import UnreachableTargetWarning, check, public_name
from cards.methods.base import Method
from cards.placement import Placement, reward_for
from cards.settings import CONCURRENCY
from cards.shaping import ShapingOptions

RAY = "Ray"
FILE_TYPES = ", ".join(SUFFIXES)
INPUTS = ", ".join(name for name in INPUT_SUFFIXES if not name.endswith(".gz")) + " (also .gz)"


@with_settings
@with_options(BatchOptions, "options")
@with_options(ShapingOptions, "shape", SHAPING)
@with_placement
def batch(
    source: Annotated[
        Path,
        typer.Argument(metavar="IN", help=f"Input rows, each with a prompt or messages: {INPUTS}, or - for standard input."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help=f"Output rows with the responses, in input order: {FILE_TYPES}.")],
    method: Annotated[str, typer.Option(*METHOD_FLAGS, help=METHOD)] = "cards",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run the rows again that failed before.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the output of an earlier batch and start again.")
    ] = False,
    concurrency: Annotated[int | None, typer.Option(min=1, help=CONCURRENCY, show_default="the number of slots")] = None,
    model: Annotated[str, MODEL] = "tiny",
    reward: Annotated[str | None, REWARD] = None,
    profile: Annotated[Path | None, PROFILE] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Decode on a Ray cluster.", rich_help_panel=RAY)] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="Address of the Ray cluster.",
            show_default="RAY_ADDRESS, otherwise a running local cluster, otherwise a new one",
            rich_help_panel=RAY,
        ),
    ] = None,
    ray_workers: Annotated[int, typer.Option(min=1, help="Number of decoders on the cluster.", rich_help_panel=RAY)] = 1,
    ray_gpus: Annotated[float, typer.Option(min=0, help="Number of GPUs per decoder.", rich_help_panel=RAY)] = 0,
    *,
    options: BatchOptions,
    shape: ShapingOptions,
    placement: Placement,
    settings: dict[str, str],
) -> None:
    """Generate a response to each row of IN and write the results to OUT.

    To resume after any interruption, run the same command again. Failed rows are written with their errors to a file that ends
    in .errors.jsonl, next to OUT; the exit code is then 1.
    """
    check(
        ray or (ray_address is None and ray_workers == 1 and not ray_gpus),
        "--ray-address, --ray-workers and --ray-gpus need --ray: add it or leave them out.",
    )
    check(not (ray and str(source) == "-"), "A Ray cluster cannot read standard input: give a file that all machines can read.")
    suffix(out)
    chosen = method_of(method, profiled(profile, method, model, reward, placement.mix, settings, options.max_tokens))
    reward = reward_for(model, reward, [chosen]) if "reward" in chosen.needed else "none"
    shaping = shape.shaping
    header = {
        "model": public_name(model),
        "reward": public_name(reward),
        **recorded(chosen),
        **placement.record,
        **asdict(options),
        **({"shaping": asdict(shaping)} if shaping else {}),
    }

    @cache
    def row_decoder() -> RowDecoder:
        return RowDecoder(load_decoder(model, reward, chosen, placement), options, shaping)

    def decode_here(numbers: Sequence[int], journal: BatchJournal, report: BatchProgress) -> bool:
        work = row_decoder()
        with report:
            return _run_interruptibly(
                work, RowReader(reading), numbers, journal, report, concurrency or work.decoder.engine.rows
            )

    def decode_on_ray(numbers: Sequence[int], journal: BatchJournal, report: BatchProgress) -> bool:
        from cards.integrations.ray_data import Cluster, Recipe

        recipe = Recipe(model, reward, chosen, placement, options, concurrency, shaping)
        cluster = Cluster(ray_address, ray_workers, ray_gpus)
        with report:
            return _write_all(cluster.outcomes(recipe, reading, numbers), journal, report)

    with stored(source) as reading:
        options.check_rows(rows(reading))
        with opened(reading, out, header, options.row, overwrite) as job, one_line_warnings(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UnreachableTargetWarning)  # shown once, for the whole batch
            if ray:
                _run(job, lambda: chosen, decode_on_ray, retry_failed)
            else:
                _run(job, lambda: row_decoder().decoder.method, decode_here, retry_failed)


Decode = Callable[[Sequence[int], BatchJournal, BatchProgress], bool]  # whether all rows were decoded


def _run(job: BatchJob, method: Callable[[], Method], decode: Decode, retry_failed: bool) -> None:
    failed, complete = job.failed, True
    if retry_failed and failed:
        numbers, merge = job.merge()
        report = BatchProgress(failed, 0, 0, stderr_console())
        with suppress(InterruptedError), merge:
            complete = decode(numbers, merge, report)
            if not complete:
                raise InterruptedError  # the merge then leaves the files unchanged
            failed = report.failed
    if complete and job.left:
        report = BatchProgress(job.total, job.total - len(job.left), failed, stderr_console())
        if report.console.is_terminal:  # loading the models can take minutes
            say(f"{len(job.left):,} of {job.total:,} rows to decode", "dim")
        with BatchJournal(job.files) as journal:
            complete = decode(job.left, journal, report)
        failed = report.failed
        if text := unreachable(report.usage, method()):
            show_warning(text)
        if report.broken:
            show_warning(f"{report.broken:,} of {report.decoded:,} responses do not meet a constraint of the reward.")
    if not complete:
        say(f"interrupted: finished rows are in {job.files.responses}; run the same command again to resume", "dim")
        raise typer.Exit(130)
    job.finish()
    say(f"{job.total - failed:,} responses are in {job.out}", "dim")
    if failed:
        say(f"{failed:,} rows failed: see {job.files.failures}; --retry-failed runs them again", "red")
        raise typer.Exit(1)


def _run_interruptibly(
    work: RowDecoder, reader: RowReader, numbers: Sequence[int], journal: BatchJournal, report: BatchProgress, concurrency: int
) -> bool:
    """Decode rows in this process and return whether all are done.

    The first Ctrl-C or SIGTERM lets the running rows finish, the second one cancels them.
    """

    async def run_rows() -> bool:
        stop, loop, task = asyncio.Event(), asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def interrupt() -> None:
            if stop.is_set():
                task.cancel()
            else:
                stop.set()
                say("finishing the running rows; interrupt again to cancel them", "dim")

        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(NotImplementedError):  # Windows
                loop.add_signal_handler(number, interrupt)
        with suppress(asyncio.CancelledError):
            await run(work, reader, numbers, journal.write, concurrency, stop, report.add)
        return not stop.is_set()

    return asyncio.run(run_rows())


def _write_all(outcomes: Iterator[Outcome], journal: BatchJournal, report: BatchProgress) -> bool:
    """Write the outcomes and return whether all were written, that is, without Ctrl-C."""
    try:
        for outcome in outcomes:
            journal.write(outcome)
            report.add(outcome)
    except KeyboardInterrupt:
        return False
    return True
