"""Preference data from answers: what was accepted before what was refused, in rows that TRL's trainers read as they are."""

from __future__ import annotations

import hashlib
import json
import warnings
from asyncio import Semaphore
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from cards.background import background
from cards.batch.rows import arrow
from cards.batch.work import is_fatal
from cards.decoder import Decoder, PromptLike
from cards.errors import CardsError, SettingError, check
from cards.events import Message, Prompt, Result
from cards.files import atomic_write
from cards.progress import run_concurrently
from cards.registry import method_classes

REPETITION = 1_000_000  # between the seeds of two answers to a prompt
By = Literal["segments", "answers"]


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A prompt, text or messages, with a better and a worse continuation and their rewards."""

    prompt: str | tuple[Message, ...]
    chosen: str
    rejected: str
    score_chosen: float
    score_rejected: float

    def row(self) -> dict[str, Any]:
        """TRL's standard format for a text, its conversational format for messages."""
        scores = {"score_chosen": self.score_chosen, "score_rejected": self.score_rejected}
        if isinstance(self.prompt, str):
            return {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected, **scores}
        chosen, rejected = ([Message(role="assistant", content=text)] for text in (self.chosen, self.rejected))
        return {"prompt": list(self.prompt), "chosen": chosen, "rejected": rejected, **scores}


@dataclass(frozen=True, slots=True)
class Pairing:
    """Which answers are drawn for a prompt, and which pairs they make; see `preferences`. Raises SettingError."""

    decoder: Decoder
    by: By
    repeats: int = 1
    gap: float = 0.0
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.repeats >= 1, f"repeats must be at least 1, not {self.repeats}.")
        check(self.gap >= 0, f"gap must not be negative, not {self.gap}.")

    async def draw(self, number: int, prompt: PromptLike, gate: Semaphore) -> list[PreferencePair]:
        """Return the pairs of prompt number `number`. `gate` bounds the responses that are decoded at a time."""
        results: dict[int, Result] = {}

        async def one(k: int) -> None:
            async with gate:
                seed = self.seed + number + REPETITION * k
                results[k] = await self.decoder.agenerate(prompt, seed=seed, trace=True, **self.options)

        def failed(k: int, error: CardsError) -> None:
            raise error

        await run_concurrently(range(self.repeats), one, failed, self.repeats, False)
        return self.pairs(prompt, [results[k] for k in range(self.repeats)])

    def pairs(self, prompt: PromptLike, results: Sequence[Result]) -> list[PreferencePair]:
        """Of traced answers to one prompt."""
        if self.by == "answers":
            return list(answers(prompt, results, self.gap))
        engine = self.decoder.engine
        encoded = engine.encode(prompt)
        begin = getattr(engine.tokenizer, "bos_token", None) or ""  # the trainer writes it again
        encoded = replace(encoded, text=encoded.text.removeprefix(begin))
        return [pair for result in results for pair in segments(encoded, result, self.gap)]


def preferences(
    decoder: Decoder,
    prompts: Sequence[PromptLike],
    *,
    by: By | None = None,
    repeats: int = 1,
    gap: float = 0.0,
    seed: int = 0,
    **options: Any,
) -> Iterator[PreferencePair]:
    """Decodes prompts, `repeats` times each, and yields each pair once whose rewards differ by more than `gap`.

    by "segments" (None: for methods that have them): an accepted segment and the answer that it led to, against each candidate
    refused in its place, after the text before them. by "answers": the best whole answer against the worst. Chosen answers
    have come to their end, for a trainer closes each text with the end token. Prompts that fail give a warning and no pairs.
    Options as for Decoder. Raises SettingError.
    """
    pairing = Pairing(decoder, kind(decoder.method.name, by), repeats, gap, seed, options)

    def failed(number: int, error: CardsError) -> None:
        if is_fatal(error):
            raise error
        warnings.warn(f"Prompt number {number} gives no pairs: {error}", stacklevel=1)

    async def draw(numbers: range) -> list[PreferencePair]:
        gate, found = Semaphore(decoder.engine.rows), dict[int, list[PreferencePair]]()

        async def one(number: int) -> None:
            found[number] = await pairing.draw(number, prompts[number], gate)

        await run_concurrently(numbers, one, failed, len(numbers), None)
        return [pair for number in sorted(found) for pair in found[number]]

    parts = range(0, len(prompts), size := 4 * decoder.engine.rows)
    found = (background().run(draw(range(start, min(start + size, len(prompts))))) for start in parts)
    yield from once(chain.from_iterable(found))


def kind(method: str, by: By | None) -> By:
    """What pairs of a method's answers are made of. Raises SettingError for segments where it has none."""
    siblings = [name for name, cls in method_classes().items() if cls.siblings]
    if by == "segments" and method not in siblings:
        raise SettingError(
            f"Method {method!r} gives no pairs of segments, because its candidates do not share their beginning. "
            f"Methods that do: {', '.join(siblings)}."
        )
    return by or ("segments" if method in siblings else "answers")


def once(pairs: Iterable[PreferencePair]) -> Iterator[PreferencePair]:
    """Each pair of texts the first time that it comes."""
    seen: set[bytes] = set()
    for pair in pairs:
        key = hashlib.sha256(json.dumps([pair.prompt, pair.chosen, pair.rejected]).encode()).digest()
        if key not in seen:
            seen.add(key)
            yield pair


def segments(prompt: Prompt, result: Result, gap: float = 0.0) -> Iterator[PreferencePair]:
    """Pairs within a traced answer that has come to its end."""
    before, left = prompt.text, result.text
    for segment in result.segments if result.finish_reason == "stop" else ():
        for refused in segment.rejected:
            pair = _pair(before, left, segment.reward, refused.text, refused.reward, gap)
            if pair is not None:
                yield pair
        before, left = before + segment.text, left[len(segment.text) :]


def answers(prompt: PromptLike, results: Iterable[Result], gap: float = 0.0) -> Iterator[PreferencePair]:
    """The best of all whole answers to a prompt against the worst; traced results of one segment bring those refused too."""
    whole = [(r.text, r.reward, r.finish_reason) for r in results if r.reward is not None]
    for result in results:
        refused = result.segments[0].rejected if len(result.segments) == 1 else ()
        whole += [(s.text, s.reward, s.finish_reason) for s in refused if s.finish_reason and s.reward is not None]
    ended = [answer for answer in whole if answer[2] == "stop" and answer[0].strip()]
    if ended:
        best, worst = max(ended, key=lambda answer: answer[1]), min(whole, key=lambda answer: answer[1])
        asked = prompt if isinstance(prompt, str) else tuple(prompt)
        texts = [text if isinstance(prompt, str) else text.strip() for text in (best[0], worst[0])]
        pair = _pair(asked, texts[0], best[1], texts[1], worst[1], gap)
        if pair is not None:
            yield pair


def check_form(path: Path) -> None:
    """Raises SettingError if pairs cannot be written to a file of this name."""
    check(path.suffix in (".jsonl", ".parquet"), f"Pairs are written to a .jsonl or .parquet file, not {path.name!r}.")
    if path.suffix == ".parquet":
        arrow("parquet")


def write(path: Path, pairs: Iterable[PreferencePair]) -> int:
    """Writes the pairs as JSON Lines or Parquet, whole or not at all; returns how many. Raises SettingError."""
    check_form(path)
    count = 0
    with atomic_write(path) as file:
        if path.suffix == ".parquet":
            rows = [pair.row() for pair in pairs]
            arrow("parquet").write_table(arrow("lib").Table.from_pylist(rows), file)
            return len(rows)
        for pair in pairs:
            file.write(json.dumps(pair.row(), ensure_ascii=False).encode() + b"\n")
            count += 1
    return count


def _pair(
    prompt: str | tuple[Message, ...], better: str, high: float | None, worse: str, low: float | None, gap: float
) -> PreferencePair | None:
    if high is None or low is None or high - low <= gap or better == worse or not worse:
        return None
    return PreferencePair(prompt, better, worse, high, low)
