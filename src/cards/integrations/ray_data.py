"""Batches on a Ray cluster: Ray Data distributes blocks of rows to decoders and returns the outcomes in order."""

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
from cards.errors import CardsError, MissingExtraError, SettingError
from cards.methods.base import Method
from cards.placement import Placement
from cards.shaping import NO_SHAPING, Shaping
from cards.study.models import Models

BLOCK_ROWS = 64
BLOCKS_IN_FLIGHT = 2  # per decoder, so that a slow last row does not leave the decoder idle


@dataclass(frozen=True, slots=True)
class Recipe:
    """The models, the method and the options of every decoder of a batch."""

    model: str
    reward: str  # "none": no reward
    method: Method
    placement: Placement = field(default_factory=Placement)
    shape: BatchOptions = field(default_factory=BatchOptions)
    concurrency: int | None = None  # rows in flight per decoder (None: the number of cache slots)
    shaping: Shaping = NO_SHAPING

    def work(self) -> RowDecoder:
        """Load the models and return the work of one decoder."""
        engine = self.placement.load_engine(self.model)
        reward = None if self.reward == "none" else self.placement.load_reward(self.reward)
        return RowDecoder(Models(engine, reward, placement=self.placement).decoder(self.method), self.shape, self.shaping)


class Worker:
    """A decoder in a Ray actor. It reads its rows from the input, which must have the same path on every node."""

    def __init__(self, recipe: Recipe, source: Path) -> None:
        self.recipe, self.reader = recipe, RowReader(source)
        self.work: RowDecoder | None = None

    async def __call__(self, block: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Yield the pickled outcomes of the rows `numbers`, and the message of an error that ends the batch."""
        outcomes: list[Outcome | str] = []
        try:
            self.work = self.work or self.recipe.work()
            concurrency = self.recipe.concurrency or self.work.decoder.engine.rows
            await run(self.work, self.reader, block["numbers"][0].tolist(), outcomes.append, concurrency, asyncio.Event())
        except CardsError as error:
            outcomes.append(str(error))
        yield {"outcome": [pickle.dumps(outcome) for outcome in outcomes]}


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray cluster and the resources of a batch. `address` None means RAY_ADDRESS, or else a local cluster."""

    address: str | None = None
    workers: int = 1
    gpus: float = 0  # per worker

    def outcomes(self, recipe: Recipe, source: Path, numbers: Sequence[int]) -> Iterator[Outcome]:
        """Yield the outcomes of the rows `numbers`, which must be ascending, in order and once each.

        Ray decodes the blocks of a lost worker or node again, with the same seeds and therefore the same outcomes.
        Raises CardsError for errors that concern the whole batch.
        """
        data = _connected(self.address)
        context = data.DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = context.print_on_execution_start = False
        blocks = [{"numbers": list(numbers[i : i + BLOCK_ROWS])} for i in range(0, len(numbers), BLOCK_ROWS)]
        with data.DataContext.current(context):
            pool = data.ActorPoolStrategy(
                size=min(self.workers, len(blocks)),
                max_concurrent_calls_per_actor=BLOCKS_IN_FLIGHT,
                max_tasks_in_flight_per_actor=BLOCKS_IN_FLIGHT,
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
    """Connect to Ray and return ray.data. Raises MissingExtraError, or SettingError if the cluster cannot be reached."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # the batch reports its own progress
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("A Ray cluster needs Ray", "ray") from error
    if not ray.is_initialized():
        try:
            ray.init(address, log_to_driver=False, include_dashboard=None if address else False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as error:
            raise SettingError(f"Cannot connect to a Ray cluster at {address!r}: {error}") from error
    return ray.data
