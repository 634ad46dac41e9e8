"""Responses of several systems to the same prompts: results of a bench, and files made elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cards.errors import CardsError, PromptError, SettingError, check
from cards.events import Message
from cards.study.journal import MARK, Journal
from cards.study.prompts import content, rows
from cards.usage import Usage

TEXTS = ("answer", "text", "response", "output")  # the first that a row has is its answer
ASKED = ("prompt", "instruction", "goal", "messages")


@dataclass(frozen=True, slots=True)
class SystemResponse:
    """A system's answer. `prompt` is a fingerprint of what was asked: answers are compared if it is the same, and only then.

    What is not known is None or empty. `grades` are a bench's: reward or gold -> (name of the reward model, value).
    """

    system: str
    prompt: str
    asked: tuple[Message, ...]
    id: str
    text: str
    seed: int | None = None
    group: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    grades: Mapping[str, tuple[str, float]] = field(default_factory=dict)

    @property
    def words(self) -> int:
        return len(self.text.split())


@dataclass(frozen=True, slots=True)
class SystemResponses:
    """Of each system, its answers; `steered` are the rewards that helped to make some of them."""

    systems: dict[str, list[SystemResponse]]
    steered: frozenset[str]

    @property
    def all(self) -> list[SystemResponse]:
        return [answer for answers in self.systems.values() for answer in answers]

    def graders(self, role: str) -> set[str | None]:
        """The reward models that have graded answers already, None among them if some answers have no such grade."""
        return {answer.grades[role][0] if role in answer.grades else None for answer in self.all}


def read(sources: Iterable[str], groups: Mapping[str, str] | None = None) -> SystemResponses:
    """Of files, each written FILE or NAME=FILE. `groups` says which group a prompt (its fingerprint) is of, where files do not.

    Raises PromptError or SettingError, naming the file and the row.
    """
    systems: dict[str, list[SystemResponse]] = {}
    steered = set()
    for source in sources:
        name, _, file = source.rpartition("=")
        path = Path(source if Path(source).exists() else file)
        journal = _journal(path)
        found = _made_by_bench(journal) if journal else _made_elsewhere(path, groups or {})
        if journal and journal.header["reward"] != "none":
            steered.add(journal.header["reward"])
        if name and str(path) == file:
            check(
                len({a.system for a in found}) == 1, f"{file!r} has answers of several systems, so it cannot be named {name!r}."
            )
            found = [replace(answer, system=name) for answer in found]
        for answer in found:
            systems.setdefault(answer.system, []).append(answer)
        for system in dict.fromkeys(answer.system for answer in found):
            _check_once(systems[system], source)
    return SystemResponses(systems, frozenset(steered))


def pairs(answers: Sequence[SystemResponse], baseline: Sequence[SystemResponse]) -> list[tuple[SystemResponse, SystemResponse]]:
    """Responses to the same prompt: of the same seed where all have seeds, else the first with the first, and so on."""
    if all(answer.seed is not None for answer in (*answers, *baseline)):
        base = {(answer.prompt, answer.seed): answer for answer in baseline}
        return [(a, base[a.prompt, a.seed]) for a in answers if (a.prompt, a.seed) in base]
    others = _by_prompt(baseline)
    return [pair for prompt, own in _by_prompt(answers).items() for pair in zip(own, others.get(prompt, ()), strict=False)]


def unpaired(answers: Sequence[SystemResponse], baseline: Sequence[SystemResponse]) -> list[str]:
    """The last message of each prompt that only one of the two has answered."""
    own, other = ({a.prompt: a.asked[-1]["content"] for a in found} for found in (answers, baseline))
    return [said for prompt, said in (own | other).items() if (prompt in own) != (prompt in other)]


def messages_of(row: Any) -> tuple[Message, ...]:
    """Return the prompt of a row as messages, whatever form it is written in. Raises PromptError."""
    asked = content(row)
    return (Message(role="user", content=asked.strip()),) if isinstance(asked, str) else asked


def fingerprint(asked: Sequence[Message]) -> str:
    said = [[message["role"], message["content"].strip()] for message in asked]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _journal(path: Path) -> Journal | None:
    """Return the results of a bench, if this is such a file. Raises SettingError if their format is not known."""
    try:
        with path.open("rb") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError):
        return None  # the reader of the rows reports it
    return Journal.load(path) if isinstance(first, dict) and "reward" in first.get(MARK, ()) else None


def _made_by_bench(journal: Journal) -> list[SystemResponse]:
    names = {role: journal.header[role] for role in ("reward", "gold")}
    found = []
    for row in journal.rows:
        asked = messages_of(row["prompt"])
        found.append(
            SystemResponse(
                row["label"],
                fingerprint(asked),
                asked,
                row["id"],
                row["text"].strip(),
                row["seed"],
                row.get("group", ""),
                row["finish_reason"],
                Usage(**row["usage"]),
                {role: (name, row[role]) for role, name in names.items() if row.get(role) is not None},
            )
        )
    if not found:
        raise PromptError(f"There are no answers in {str(journal.path)!r}.")
    return found


def _made_elsewhere(path: Path, groups: Mapping[str, str]) -> list[SystemResponse]:
    found = []
    for number, row in enumerate(rows(path)):
        where = f"Row number {number} of {str(path)!r}"
        if not isinstance(row, Mapping):
            raise PromptError(f"{where} must be an object with a prompt and an answer, not {type(row).__name__}.")
        text = next((row[name] for name in TEXTS if row.get(name) is not None), None)
        if not isinstance(text, str):
            raise PromptError(f"{where} has no answer: it needs one of the fields {', '.join(TEXTS)}, a text.")
        if not any(row.get(name) for name in ASKED):
            raise PromptError(f"{where} has no prompt: it needs one of the fields {', '.join(ASKED)}. Pairs are found by it.")
        try:
            asked = messages_of({name: row[name] for name in ASKED if name in row})
        except CardsError as error:
            raise PromptError(f"{where}: {error}") from error
        prompt, seed = fingerprint(asked), row.get("seed")
        try:
            seed = None if seed in (None, "") else int(seed)
        except (TypeError, ValueError):
            raise PromptError(f"{where}: seed must be a whole number, not {seed!r}.") from None
        system = str(row.get("system") or row.get("generator") or path.name.split(".")[0])
        group = str(row.get("group") or groups.get(prompt, ""))
        reason = row.get("finish_reason")
        found.append(SystemResponse(system, prompt, asked, str(row.get("id", number)), text.strip(), seed, group, reason))
    if not found:
        raise PromptError(f"There are no answers in {str(path)!r}.")
    return found


def _check_once(answers: Sequence[SystemResponse], source: str) -> None:
    """Two answers of a system to a prompt need different seeds."""
    known = set()
    for answer in answers:
        if (answer.prompt, answer.seed) in known:
            raise SettingError(
                f"{source!r} has a second answer of {answer.system!r} to the prompt {answer.id!r}: give the answers different "
                "seeds (a field `seed`), or the systems different names (NAME=FILE)."
            )
        known.add((answer.prompt, answer.seed))


def _by_prompt(answers: Iterable[SystemResponse]) -> dict[str, list[SystemResponse]]:
    found: dict[str, list[SystemResponse]] = {}
    for answer in sorted(answers, key=lambda a: a.seed or 0):
        found.setdefault(answer.prompt, []).append(answer)
    return found
