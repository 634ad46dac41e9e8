"""A preference data set in the making: the pairs of each prompt, in a journal beside the file that is made of them."""

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
from cards.integrations.preferences import Pairing, PreferencePair, once, write
from cards.prompts import format_prompt
from cards.study import session
from cards.study.journal import Row
from cards.study.models import Models
from cards.study.prompts import PromptRecord
from cards.study.session import Session


@dataclass(frozen=True, slots=True)
class Collection:
    """The pairs of `records` for the file `out`. Prompt number i has the seed `seed` + i."""

    out: Path
    records: Sequence[PromptRecord]
    seed: int
    session: Session

    @property
    def lacking(self) -> list[PromptRecord]:
        """The prompts without a row in the journal."""
        found = {_key_of(row) for row in self.session.rows}
        return [record for key, record in self._todo.items() if key not in found]

    def collect(self, pairing: Pairing, form: str) -> None:
        """Add a row for each prompt without one. Prompts that fail are noted in the session."""
        engine = pairing.decoder.engine
        gate = Semaphore(engine.rows)

        async def draw(record: PromptRecord) -> Row:
            pairs = await pairing.draw(record.number, format_prompt(record.prompt, form, engine.chats), gate)
            row = {"prompt": record.prompt, "seed": self.seed + record.number}
            return row | {"pairs": [asdict(pair) for pair in pairs]}

        def note(record: PromptRecord, error: CardsError) -> str:
            if is_fatal(error):
                raise error
            return f"prompt {record.id}: {error}"

        work = self.session.complete(self._todo, draw, _key_of, engine.rows, "decoding", note)
        self.session.run(work, "prompts", Models(engine).run)

    def finish(self) -> int:
        """Write the file, with the pairs in the order of their prompts; return how many."""
        found = {_key_of(row): row["pairs"] for row in self.session.rows}
        rows = (row for key in self._todo for row in found.get(key, ()))
        return write(self.out, once(PreferencePair(**row) for row in rows))

    @property
    def _todo(self) -> dict[str, PromptRecord]:
        return {_key_of({"prompt": one.prompt, "seed": self.seed + one.number}): one for one in self.records}


@contextmanager
def opened(out: Path, settings: Mapping[str, Any], records: Sequence[PromptRecord], seed: int) -> Iterator[Collection]:
    """Yield the collection of a file that only this process writes to; `settings` are what all of its pairs have in common.

    Raises SettingError if the file was not made by `cards preferences`, or was begun with other settings.
    """
    journal = out.with_name(out.name + ".journal")
    if out.exists() and not journal.exists():
        raise SettingError(
            f"{str(out)!r} is there without {journal.name!r}, so it cannot be continued: remove it, or choose another output."
        )
    header = json.loads(json.dumps({"made by": "cards preferences", **settings}, default=str))
    with session.opened(journal, header, "`cards preferences`") as begun:
        yield Collection(out, records, seed, begun)


def _key_of(row: Row) -> str:
    return json.dumps([row["prompt"], row["seed"]])
