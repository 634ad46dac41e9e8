"""Preference data from answers: what was accepted before what was refused, in rows that TRL's trainers read as they are."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from cards.batch.rows import arrow
from cards.batch.work import ends
from cards.decoder import Decoder, PromptLike, background
from cards.errors import CardsError, SettingError, check
from cards.events import Message, Prompt, Result
from cards.files import replacing
from cards.progress import together
from cards.registry import method_classes

REPETITION = 1_000_000  # between the seeds of two answers to a prompt
By = Literal["segments", "answers"]


@dataclass(frozen=True, slots=True)
class Pair:
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

    async def run(
        self,
        prompts: Mapping[int, PromptLike],
        take: Callable[[int, list[Pair]], None],
        failed: Callable[[int, CardsError], None],
    ) -> None:
        """Decode prompts, given by number. `take` gets a prompt's pairs once all of its answers are there, `failed` the first
        error with one of them, unless other prompts would meet the same: that one is raised."""
        drawn: dict[int, dict[int, Result]] = {number: {} for number in prompts}  # of those not taken and not failed

        async def one(item: tuple[int, int]) -> None:
            number, k = item
            if (results := drawn.get(number)) is None:
                return
            seed = self.seed + number + REPETITION * k
            results[k] = await self.decoder.agenerate(prompts[number], seed=seed, trace=True, **self.options)
            if len(results) == self.repeats:
                del drawn[number]
                take(number, self.pairs(prompts[number], [results[k] for k in range(self.repeats)]))

        def lost(item: tuple[int, int], error: CardsError) -> None:
            if ends(error):
                raise error
            if drawn.pop(item[0], None) is not None:
                failed(item[0], error)

        items = [(number, k) for number in prompts for k in range(self.repeats)]
        try:
            await together(items, one, lost, self.decoder.engine.rows, None)
        finally:  # the loop must not close in the middle of a step
            await self.decoder.engine.settle()

    def pairs(self, prompt: PromptLike, results: Sequence[Result]) -> list[Pair]:
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
) -> Iterator[Pair]:
    """Decodes prompts, `repeats` times each, and yields each pair once whose rewards differ by more than `gap`.

    by "segments" (None: for methods that have them): an accepted segment and the answer that it led to, against each candidate
    refused in its place, after the text before them. by "answers": the best whole answer against the worst. Chosen answers
    have come to their end, for a trainer closes each text with the end token. Prompts that fail give a warning and no pairs.
    Options as for Decoder. Raises SettingError.
    """
    pairing = Pairing(decoder, kind(decoder.method.name, by), repeats, gap, seed, options)

    def failed(number: int, error: CardsError) -> None:
        warnings.warn(f"Prompt number {number} gives no pairs: {error}", stacklevel=1)

    def found() -> Iterator[Pair]:
        for start in range(0, len(prompts), size := 4 * decoder.engine.rows):
            part = {number: prompts[number] for number in range(start, min(start + size, len(prompts)))}
            made: dict[int, list[Pair]] = {}
            background().run(pairing.run(part, made.__setitem__, failed))
            yield from chain.from_iterable(made[number] for number in sorted(made))

    yield from once(found())


def kind(method: str, by: By | None) -> By:
    """What pairs of a method's answers are made of. Raises SettingError for segments where it has none."""
    siblings = [name for name, cls in method_classes().items() if cls.siblings]
    if by == "segments" and method not in siblings:
        raise SettingError(
            f"Method {method!r} gives no pairs of segments, because its candidates do not share their beginning. "
            f"Methods that do: {', '.join(siblings)}."
        )
    return by or ("segments" if method in siblings else "answers")


def once(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Each pair of texts the first time that it comes."""
    seen: set[bytes] = set()
    for pair in pairs:
        key = hashlib.sha256(json.dumps([pair.prompt, pair.chosen, pair.rejected]).encode()).digest()
        if key not in seen:
            seen.add(key)
            yield pair


def segments(prompt: Prompt, result: Result, gap: float = 0.0) -> Iterator[Pair]:
    """Pairs within a traced answer that has come to its end."""
    before, left = prompt.text, result.text
    for segment in result.segments if result.finish_reason == "stop" else ():
        for refused in segment.rejected:
            pair = _pair(before, left, segment.reward, refused.text, refused.reward, gap)
            if pair is not None:
                yield pair
        before, left = before + segment.text, left[len(segment.text) :]


def answers(prompt: PromptLike, results: Iterable[Result], gap: float = 0.0) -> Iterator[Pair]:
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


def write(path: Path, pairs: Iterable[Pair]) -> int:
    """Writes the pairs as JSON Lines or Parquet, whole or not at all; returns how many. Raises SettingError."""
    check_form(path)
    count = 0
    with replacing(path) as file:
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
) -> Pair | None:
    if high is None or low is None or high - low <= gap or better == worse or not worse:
        return None
    return Pair(prompt, better, worse, high, low)
