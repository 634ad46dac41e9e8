"""Batches on a Ray cluster: Ray Data hands blocks of rows to decoders and their outcomes back, in order, each once."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cards.batch.rows import RowReader
from cards.batch.run import run
from cards.batch.work import BatchOptions, Outcome, RowDecoder
from cards.decoder import Decoder
from cards.errors import CardsError, MissingExtraError, SettingError
from cards.methods.base import Method
from cards.placement import Placement

BLOCK = 64  # rows that a decoder gets at a time
AHEAD = 2  # blocks that a decoder works on together, so that none waits for the last row of another


@dataclass(frozen=True, slots=True)
class Recipe:
    """What every decoder of a batch is made of."""

    model: str
    reward: str  # or none
    method: Method
    placement: Placement = field(default_factory=Placement)
    shape: BatchOptions = field(default_factory=BatchOptions)
    concurrency: int | None = None  # rows that one decoder decodes at once (None: as many as the engine has)

    def work(self) -> RowDecoder:
        engine = self.placement.engine(self.model)
        reward = None if self.reward == "none" else self.placement.reward(self.reward)
        return RowDecoder(Decoder(engine, reward, self.method), self.shape)


class Worker:
    """A decoder in an actor. It reads its rows itself, so the input must have the same path on every node."""

    def __init__(self, recipe: Recipe, source: Path) -> None:
        self.recipe, self.reader = recipe, RowReader(source)
        self.work: RowDecoder | None = None

    async def __call__(self, block: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Outcomes of the rows `numbers`, pickled; an error that ends the batch comes as its message."""
        found: list[Outcome | str] = []
        try:
            self.work = self.work or self.recipe.work()
            most = self.recipe.concurrency or self.work.decoder.engine.rows
            await run(self.work, self.reader, block["numbers"][0].tolist(), found.append, most, asyncio.Event())
        except CardsError as error:
            found.append(str(error))
        yield {"outcome": [pickle.dumps(outcome) for outcome in found]}


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray cluster and what a batch may use of it. address None: RAY_ADDRESS, else Ray on this machine alone."""

    address: str | None = None
    workers: int = 1
    gpus: float = 0

    def outcomes(self, recipe: Recipe, source: Path, numbers: Sequence[int]) -> Iterator[Outcome]:
        """Outcomes of the rows of these rising numbers, in their order, each once.

        Blocks that a worker or a node takes with it are decoded again by Ray, with the same seeds and so to the same rows.
        Raises CardsError where the fault is not a row's own.
        """
        data = _connected(self.address)
        context = data.DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = context.print_on_execution_start = False
        blocks = [{"numbers": list(numbers[i : i + BLOCK])} for i in range(0, len(numbers), BLOCK)]
        with data.DataContext.current(context):
            pool = data.ActorPoolStrategy(
                size=min(self.workers, len(blocks)), max_concurrent_calls_per_actor=AHEAD, max_tasks_in_flight_per_actor=AHEAD
            )
            decoded = data.from_items(blocks, override_num_blocks=len(blocks)).map_batches(
                Worker,
                batch_size=None,
                fn_constructor_args=(recipe, source.resolve()),
                compute=pool,
                num_cpus=1,
                num_gpus=self.gpus or None,
            )
            for row in decoded.iter_rows():
                outcome = pickle.loads(row["outcome"])
                if isinstance(outcome, str):
                    raise CardsError(outcome)
                yield outcome


def _connected(address: str | None) -> Any:
    """ray.data, connected. Raises MissingExtraError, or SettingError if the cluster cannot be reached."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # the batch has a progress of its own
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("A Ray cluster needs Ray", "ray") from error
    if not ray.is_initialized():
        try:
            ray.init(address, log_to_driver=False, include_dashboard=None if address else False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as error:
            raise SettingError(f"No Ray cluster answers at {address!r}: {error}") from error
    return ray.data
