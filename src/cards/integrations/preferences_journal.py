"""A preference data set on its way: what each prompt gave so far, in a journal beside the file that is made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cards.errors import SettingError
from cards.integrations.preferences import Pair, once, write
from cards.study.bench.results import Results
from cards.study.prompts import Question


class Collection:
    """Pairs of `questions` for the file `out`; `settings` are what all of its pairs have in common.

    Raises SettingError if the file is none of ours, or was begun with other settings.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], questions: Sequence[Question], seed: int) -> None:
        self.out, self.questions, self.seed = out, questions, seed
        journal = out.with_name(out.name + ".journal")
        if out.exists() and not journal.exists():
            raise SettingError(
                f"{str(out)!r} is there without {journal.name!r}, so it cannot be gone on with: remove it, or choose another "
                "output."
            )
        header = {"made by": "cards preferences", **settings}
        self.journal = Results.open(journal, json.loads(json.dumps(header, default=str)))

    @property
    def lacking(self) -> list[Question]:
        """Prompts that the journal says nothing of."""
        found = self._found()
        return [question for question in self.questions if self._key(question) not in found]

    def add(self, question: Question, pairs: Sequence[Pair]) -> None:
        """What a prompt gave; it is in the journal at once."""
        row = {"prompt": question.asked, "seed": self.seed + question.number}
        self.journal.append(row | {"pairs": [asdict(pair) for pair in pairs]})

    def finish(self) -> int:
        """Write the file, pairs in the order of their prompts; returns how many."""
        found = self._found()
        rows = (row for question in self.questions for row in found.get(self._key(question), ()))
        return write(self.out, once(Pair(**row) for row in rows))

    def _found(self) -> dict[str, list[dict[str, Any]]]:
        return {json.dumps([row["prompt"], row["seed"]]): row["pairs"] for row in self.journal.rows}

    def _key(self, question: Question) -> str:
        return json.dumps([question.asked, self.seed + question.number])
