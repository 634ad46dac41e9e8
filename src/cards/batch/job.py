"""One batch: where rows come from and go to, what they are made with, and which of them are left."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cards.batch import pack
from cards.batch.journal import BatchJournal, Files, Merge, done, failed, settle
from cards.batch.rows import Survey, suffix, survey
from cards.errors import SettingError
from cards.files import atomic_write, check_format, locked

FORMAT = 1  # of state file and rows; format 0 has the same, and no version


@dataclass(frozen=True, slots=True)
class BatchJob:
    """A batch that this process alone works on. `answered` and `failed` are rows of earlier runs."""

    source: Path
    out: Path
    files: Files
    total: int
    answered: int
    failed: int

    @property
    def left(self) -> Sequence[int]:
        """Numbers of the rows that nobody has looked at."""
        return range(self.answered + self.failed, self.total)

    def journal(self) -> BatchJournal:
        return BatchJournal(self.files)

    def merge(self) -> tuple[Sequence[int], Merge]:
        """Numbers of the rows that failed, and where their new outcomes go."""
        if not self.files.answers.exists() and self.out.exists():
            pack.unpack(self.out, self.files.answers)
        return list(failed(self.files)), Merge(self.files)

    def finish(self) -> None:
        """Give the output its form, once all rows are there."""
        if self.files.answers.exists() or not self.out.exists():
            self.files.answers.touch()
            if self.files.answers != self.out:
                pack.pack(self.files.answers, self.out)


@contextmanager
def opened(source: Path, out: Path, settings: dict[str, Any], row: str) -> Iterator[BatchJob]:
    """Begin a batch, or go on with the one that is there. `settings` and the input must be those that it was begun with.

    Raises SettingError if they are not, if the output is not one of a batch, or if another process is at it.
    """
    plain = suffix(out) == ".jsonl"
    answers = out if plain else out.with_name(out.name + ".partial.jsonl")
    files = Files(answers, out.with_name(out.name.removesuffix(suffix(out)) + ".errors.jsonl"), row)
    if out.resolve() == source.resolve() or files.failures.resolve() == source.resolve():
        raise SettingError(f"The input {str(source)!r} is where the batch would write to: choose another output.")
    with locked(out, "batch"):
        found = survey(source)
        _same(out, files, {**settings, "input": asdict(found)})
        settle(files)
        yield BatchJob(source, out, files, found.rows, *_done(out, files, found))


def _done(out: Path, files: Files, found: Survey) -> tuple[int, int]:
    if files.answers != out and out.exists() and not files.answers.exists():  # packed: every row is there
        failures = sum(1 for _ in failed(files))
        return found.rows - failures, failures
    return done(files)


def _same(out: Path, files: Files, now: dict[str, Any]) -> None:
    """Compare with what the batch was begun with, or write that down."""
    state = out.with_name(out.name + ".state.json")
    now = json.loads(json.dumps(now, default=str))
    if not state.exists():
        for path in (out, files.answers, files.failures):
            if path.exists():
                raise SettingError(f"{str(path)!r} is there and was not begun by `cards batch`: choose another output.")
        try:
            with atomic_write(state) as file:
                file.write(json.dumps({"format": FORMAT, **now}, indent=2).encode())
        except OSError as error:
            raise SettingError(f"The batch cannot be written to {str(out)!r}: {error.strerror}.") from error
        return
    try:
        before = dict(json.loads(state.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise SettingError(f"{str(state)!r} is damaged, so {str(out)!r} cannot be continued: begin anew.") from error
    check_format(state, before.pop("format", 0), FORMAT, "choose another output")
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    wrong = [f"{name} {before.get(name)!r}, now {now.get(name)!r}" for name in names]
    if wrong:
        raise SettingError(
            f"{str(out)!r} was begun with {'; '.join(wrong)}. Rows of both cannot be mixed: choose another output, or run with "
            "what it was begun with."
        )
