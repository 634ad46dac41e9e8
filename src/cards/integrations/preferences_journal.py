"""Resumable preference data sets: the pairs of each prompt are journaled, and the output is written from the journal."""

from __future__ import annotations

import json
from asyncio import Semaphore
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cards.batch.work import is_fatal
from cards.errors import CardsError, SettingError
from cards.integrations.preferences import Pairing, PreferencePair, distinct, write
from cards.prompts import ChatOptions
from cards.study import session
from cards.study.journal import Row
from cards.study.models import Models
from cards.study.prompts import PromptRecord
from cards.study.session import Session


@dataclass(frozen=True, slots=True)
class Collection:
    """The pairs of `records` for the file `out`. Prompt number i uses seed + i."""

    out: Path
    records: Sequence[PromptRecord]
    seed: int
    session: Session

    @property
    def missing(self) -> list[PromptRecord]:
        """Return the prompts without a row in the journal."""
        found = {_key_of(row) for row in self.session.rows}
        return [record for key, record in self._todo.items() if key not in found]

    def collect(self, pairing: Pairing, options: ChatOptions) -> None:
        """Add a row for each missing prompt. Prompts that fail are noted in the session."""
        engine = pairing.decoder.engine
        gate = Semaphore(engine.rows)

        async def draw(record: PromptRecord) -> Row:
            pairs = await pairing.draw(record.number, options.prompt(record.prompt, engine.chats), gate)
            row = {"prompt": record.prompt, "seed": self.seed + record.number}
            return row | {"pairs": [asdict(pair) for pair in pairs]}

        def note(record: PromptRecord, error: CardsError) -> str:
            if is_fatal(error):
                raise error
            return f"prompt {record.id}: {error}"

        work = self.session.complete(self._todo, draw, _key_of, engine.rows, "decoding", note)
        self.session.run(work, "prompts", Models(engine).run)

    def finish(self) -> int:
        """Write the file in the order of the prompts, and return the number of pairs."""
        found = {_key_of(row): row["pairs"] for row in self.session.rows}
        rows = (row for key in self._todo for row in found.get(key, ()))
        return write(self.out, distinct(PreferencePair(**row) for row in rows))

    @property
    def _todo(self) -> dict[str, PromptRecord]:
        return {_key_of({"prompt": r.prompt, "seed": self.seed + r.number}): r for r in self.records}


@contextmanager
def opened(out: Path, settings: Mapping[str, Any], records: Sequence[PromptRecord], seed: int) -> Iterator[Collection]:
    """Yield the collection for a file, locked for this process. `settings` are common to all of its pairs.

    Raises SettingError if the file was not written by `cards preferences`, or with other settings.
    """
    journal = out.with_name(out.name + ".journal")
    if out.exists() and not journal.exists():
        raise SettingError(
            f"{str(out)!r} exists without {journal.name!r}, so it cannot be resumed. Remove it, or choose another output."
        )
    header = json.loads(json.dumps({"made by": "cards preferences", **settings}, default=str))
    with session.opened(journal, header, "`cards preferences`") as current:
        yield Collection(out, records, seed, current)


def _key_of(row: Row) -> str:
    return json.dumps([row["prompt"], row["seed"]])
