"""Responses of several systems to the same prompts, read from bench results or other files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cards.errors import PromptError, check
from cards.events import Message
from cards.study.journal import MARK, Journal, Row
from cards.study.prompts import content, parsed, rows
from cards.usage import Usage
from cards.words import count_words

RESPONSE_FIELDS = ("answer", "text", "response", "output")  # the first of them that a row has holds the response
PROMPT_FIELDS = ("prompt", "instruction", "goal", "messages")


@dataclass(frozen=True, slots=True)
class SystemResponse:
    """The response of a system to a prompt. Unknown values are None or empty.

    prompt: a fingerprint of the prompt; only responses with equal fingerprints are compared.
    messages: the prompt.
    grades: grades from a bench, by role (reward or gold): the name of the reward model and the value.
    """

    system: str
    prompt: str
    messages: tuple[Message, ...]
    id: str
    text: str
    seed: int | None = None
    group: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    grades: Mapping[str, tuple[str, float]] = field(default_factory=dict)

    @property
    def words(self) -> int:
        return count_words(self.text)


@dataclass(frozen=True, slots=True)
class SystemResponses:
    """The responses of each system, and the names of the rewards that steered some of them."""

    systems: dict[str, list[SystemResponse]]
    steering: frozenset[str]

    @property
    def all(self) -> list[SystemResponse]:
        return [response for responses in self.systems.values() for response in responses]

    def graders(self, role: str) -> set[str | None]:
        """Return the names of the reward models that gave the grades of a role. None is included if some grades are missing."""
        return {response.grades[role][0] if role in response.grades else None for response in self.all}


def read(sources: Iterable[str], groups: Mapping[str, str] | None = None) -> SystemResponses:
    """Read responses from files, each given as FILE or NAME=FILE.

    `groups` gives the group of a prompt (by fingerprint) if the file does not. Raises PromptError or SettingError, with the
    file and the row.
    """
    systems: dict[str, list[SystemResponse]] = {}
    steering, known = set[str](), set[tuple[str, str, int | None]]()
    for source in sources:
        name, _, file = source.rpartition("=")
        path = Path(source if Path(source).exists() else file)
        journal = _journal(path)
        responses = _from_bench(journal) if journal else _from_rows(path, groups or {})
        if journal and journal.header["reward"] != "none":
            steering.add(journal.header["reward"])
        if name and str(path) == file:
            check(
                len({r.system for r in responses}) == 1,
                f"{file!r} has responses of several systems, so it cannot be named {name!r}. Give the file without a name.",
            )
            responses = [replace(response, system=name) for response in responses]
        for response in responses:
            key = (response.system, response.prompt, response.seed)
            check(
                key not in known,
                f"{source!r} has a second response of {response.system!r} to the prompt {response.id!r}. Give the responses "
                "different seeds (field `seed`), or the systems different names (NAME=FILE).",
            )
            known.add(key)
            systems.setdefault(response.system, []).append(response)
    return SystemResponses(systems, frozenset(steering))


def pairs(
    responses: Sequence[SystemResponse], baseline: Sequence[SystemResponse]
) -> list[tuple[SystemResponse, SystemResponse]]:
    """Pair responses to the same prompt: by seed if all have seeds, else in order."""
    if all(response.seed is not None for response in (*responses, *baseline)):
        base = {(response.prompt, response.seed): response for response in baseline}
        return [(a, base[a.prompt, a.seed]) for a in responses if (a.prompt, a.seed) in base]
    others = _by_prompt(baseline)
    return [pair for prompt, own in _by_prompt(responses).items() for pair in zip(own, others.get(prompt, ()), strict=False)]


def unpaired(responses: Sequence[SystemResponse], baseline: Sequence[SystemResponse]) -> list[str]:
    """Return the last message of each prompt to which only one of the two systems has a response."""
    own, other = ({r.prompt: r.messages[-1]["content"] for r in system} for system in (responses, baseline))
    return [text for prompt, text in (own | other).items() if (prompt in own) != (prompt in other)]


def messages_of(row: Any) -> tuple[Message, ...]:
    """Return the prompt of a row as messages. Raises PromptError if the row has no prompt."""
    prompt = content(row)
    return (Message(role="user", content=prompt.strip()),) if isinstance(prompt, str) else prompt


def fingerprint(messages: Sequence[Message]) -> str:
    """Return a hash of the roles and contents of messages."""
    contents = [[message["role"], message["content"].strip()] for message in messages]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def _journal(path: Path) -> Journal | None:
    """Return the results of a bench, or None for another file. Raises SettingError if their format is not supported."""
    try:
        with path.open("rb") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError):
        return None  # `rows` reports the error
    return Journal.load(path) if isinstance(first, dict) and "reward" in first.get(MARK, ()) else None


def _from_bench(journal: Journal) -> list[SystemResponse]:
    names = {role: journal.header[role] for role in ("reward", "gold")}

    def parse(_: int, row: Row) -> SystemResponse:
        messages, text, group = messages_of(row["prompt"]), row["text"].strip(), row.get("group", "")
        prompt, usage, reason = fingerprint(messages), Usage(**row["usage"]), row["finish_reason"]
        grades = {role: (name, row[role]) for role, name in names.items() if row.get(role) is not None}
        return SystemResponse(row["label"], prompt, messages, row["id"], text, row["seed"], group, reason, usage, grades)

    return parsed(journal.rows, parse, "response", str(journal.path))


def _from_rows(path: Path, groups: Mapping[str, str]) -> list[SystemResponse]:
    def parse(number: int, row: Any) -> SystemResponse:
        if not isinstance(row, Mapping):
            raise PromptError(f"it must be an object with a prompt and a response, got {type(row).__name__}.")
        text = next((row[name] for name in RESPONSE_FIELDS if row.get(name) is not None), None)
        if not isinstance(text, str):
            raise PromptError(f"it has no response: it needs text in one of the fields {', '.join(RESPONSE_FIELDS)}.")
        if not any(row.get(name) for name in PROMPT_FIELDS):
            raise PromptError(f"it has no prompt: pairing needs one of the fields {', '.join(PROMPT_FIELDS)}.")
        messages, seed = messages_of({name: row[name] for name in PROMPT_FIELDS if name in row}), row.get("seed")
        try:
            seed = None if seed in (None, "") else int(seed)
        except (TypeError, ValueError):
            raise PromptError(f"seed must be a whole number, got {seed!r}.") from None
        prompt = fingerprint(messages)
        system = str(row.get("system") or row.get("generator") or path.name.split(".")[0])
        group = str(row.get("group") or groups.get(prompt, ""))
        identifier, reason = str(row.get("id", number)), row.get("finish_reason")
        return SystemResponse(system, prompt, messages, identifier, text.strip(), seed, group, reason)

    return parsed(rows(path, "responses"), parse, "row", str(path))


def _by_prompt(responses: Iterable[SystemResponse]) -> dict[str, list[SystemResponse]]:
    groups: dict[str, list[SystemResponse]] = {}
    for response in sorted(responses, key=lambda r: r.seed or 0):
        groups.setdefault(response.prompt, []).append(response)
    return groups
