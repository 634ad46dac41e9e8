"""A batch job: its input, output and settings, and the rows that remain."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cards.batch import pack
from cards.batch.journal import BatchFiles, MergeJournal, count_rows, failed_rows, settle
from cards.batch.rows import FileSummary, suffix, summarize
from cards.errors import SettingError
from cards.files import atomic_write, check_format, locked

FORMAT = 1  # of the state file and the rows; format 0 is the same without a version


@dataclass(frozen=True, slots=True)
class BatchJob:
    """A batch that only this process works on. `succeeded` and `failed` count rows of earlier runs."""

    out: Path
    files: BatchFiles
    total: int
    succeeded: int
    failed: int

    @property
    def left(self) -> Sequence[int]:
        """Numbers of the rows without an outcome."""
        return range(self.succeeded + self.failed, self.total)

    def merge(self) -> tuple[Sequence[int], MergeJournal]:
        """Return the numbers of the failed rows, and the journal for their new outcomes."""
        if not self.files.responses.exists() and self.out.exists():
            pack.unpack(self.out, self.files.responses)
        return list(failed_rows(self.files)), MergeJournal(self.files)

    def finish(self) -> None:
        """Write the output in its final format. Call it when all rows have an outcome."""
        if self.files.responses.exists() or not self.out.exists():
            self.files.responses.touch()
            if self.files.responses != self.out:
                pack.pack(self.files.responses, self.out)


@contextmanager
def opened(source: Path, out: Path, settings: dict[str, Any], row: str, overwrite: bool = False) -> Iterator[BatchJob]:
    """Start a batch, or resume the one at `out`, which must have the same input and settings if it has written a row.

    `overwrite` deletes the files of the batch at `out` and starts again, but only files that a batch wrote.

    Raises SettingError if they differ, if `out` was not written by a batch, or if another process works on it.
    """
    plain = suffix(out) == ".jsonl"
    responses = out if plain else out.with_name(out.name + ".partial.jsonl")
    files = BatchFiles(responses, out.with_name(out.name.removesuffix(suffix(out)) + ".errors.jsonl"), row)
    if out.resolve() == source.resolve() or files.failures.resolve() == source.resolve():
        raise SettingError(f"The batch would overwrite its input {str(source)!r}: choose another output.")
    with locked(out, "batch"):
        summary = summarize(source)
        if overwrite and _state_of(out).exists():
            for path in (out, *files.all, _state_of(out)):
                path.unlink(missing_ok=True)
        _check_state(out, files, {**settings, "input": asdict(summary)})
        settle(files)
        yield BatchJob(out, files, summary.rows, *_counts(out, files, summary))


def _counts(out: Path, files: BatchFiles, summary: FileSummary) -> tuple[int, int]:
    if files.responses != out and out.exists() and not files.responses.exists():  # packed output is complete
        failures = sum(1 for _ in failed_rows(files))
        return summary.rows - failures, failures
    return count_rows(files)


def _check_state(out: Path, files: BatchFiles, settings: dict[str, Any]) -> None:
    """Compare the settings with those in the state file, or write the state file of a new batch."""
    state = _state_of(out)
    written = [path for path in (out, files.responses, files.failures) if path.exists() and path.stat().st_size]
    settings = json.loads(json.dumps(settings, default=str))
    if not state.exists() or not written:
        if written and not state.exists():
            raise SettingError(
                f"{str(written[0])!r} exists and was not written by `cards batch`: choose another output, or delete the file."
            )
        for path in (out, files.responses, files.failures):
            path.unlink(missing_ok=True)  # empty
        try:
            with atomic_write(state) as file:
                file.write(json.dumps({"format": FORMAT, **settings}, indent=2).encode())
        except OSError as error:
            raise SettingError(f"The batch cannot be written to {str(out)!r}: {error.strerror}.") from error
        return
    try:
        stored = dict(json.loads(state.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise SettingError(
            f"{str(state)!r} is damaged, so the batch {str(out)!r} cannot be resumed: choose another output."
        ) from error
    check_format(state, stored.pop("format", 0), FORMAT, "choose another output")
    names = [name for name in {**stored, **settings} if stored.get(name) != settings.get(name)]
    differences = [f"{name} {stored.get(name)!r}, now {settings.get(name)!r}" for name in names]
    if differences:
        raise SettingError(
            f"The batch {str(out)!r} was started with {'; '.join(differences)}. Choose another output, use the original "
            "settings and input, or start it again with --overwrite."
        )


def _state_of(out: Path) -> Path:
    return out.with_name(out.name + ".state.json")
