"""Preference pairs of accepted and rejected continuations, in rows that TRL's trainers read directly."""

from __future__ import annotations

import hashlib
import json
import warnings
from asyncio import Semaphore
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from operator import itemgetter
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

REPEAT_STRIDE = 1_000_000  # difference of the seeds of two repeats of a prompt
By = Literal["segments", "answers"]


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A prompt (text or messages) with a better and a worse continuation and their rewards."""

    prompt: str | tuple[Message, ...]
    chosen: str
    rejected: str
    score_chosen: float
    score_rejected: float

    def row(self) -> dict[str, Any]:
        """Return the pair in TRL's standard format for a text prompt, or in its conversational format for messages."""
        scores = {"score_chosen": self.score_chosen, "score_rejected": self.score_rejected}
        if isinstance(self.prompt, str):
            return {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected, **scores}
        chosen, rejected = ([Message(role="assistant", content=text)] for text in (self.chosen, self.rejected))
        return {"prompt": list(self.prompt), "chosen": chosen, "rejected": rejected, **scores}


@dataclass(frozen=True, slots=True)
class Pairing:
    """The options for decoding a prompt and pairing its responses; see `preferences`. Raises SettingError."""

    decoder: Decoder
    by: By
    repeats: int = 1
    gap: float = 0.0
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.repeats >= 1, f"repeats must be at least 1, got {self.repeats}.")
        check(self.gap >= 0, f"gap must not be negative, got {self.gap}.")

    async def draw(self, number: int, prompt: PromptLike, gate: Semaphore) -> list[PreferencePair]:
        """Return the pairs of prompt number `number`. `gate` bounds the number of concurrent responses."""
        results: dict[int, Result] = {}

        async def decode(k: int) -> None:
            async with gate:
                seed = self.seed + number + REPEAT_STRIDE * k
                results[k] = await self.decoder.agenerate(prompt, seed=seed, trace=True, **self.options)

        def failed(k: int, error: CardsError) -> None:
            raise error

        await run_concurrently(range(self.repeats), decode, failed, self.repeats, False)
        return self.pairs(prompt, [results[k] for k in range(self.repeats)])

    def pairs(self, prompt: PromptLike, results: Sequence[Result]) -> list[PreferencePair]:
        """Return the pairs from traced responses to one prompt."""
        if self.by == "answers":
            return list(response_pairs(prompt, results, self.gap))
        engine = self.decoder.engine
        encoded = engine.encode(prompt)
        begin = getattr(engine.tokenizer, "bos_token", None) or ""  # the trainer adds it again
        encoded = replace(encoded, text=encoded.text.removeprefix(begin))
        return [pair for result in results for pair in segment_pairs(encoded, result, self.gap)]


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
    """Decode each prompt `repeats` times and yield the distinct pairs whose rewards differ by more than `gap`.

    - by="segments", the default for methods that support it: the prompt is extended by the accepted segments before. Each
      candidate rejected there is paired with the accepted segment and the rest of its response.
    - by="answers": the best complete response is paired with the worst.

    Chosen texts are always complete, because a trainer appends the end token to each. A prompt that fails yields a warning
    and no pairs. `options` are those of a call of the decoder. Raises SettingError.
    """
    pairing = Pairing(decoder, pair_kind(decoder.method.name, by), repeats, gap, seed, options)

    def failed(number: int, error: CardsError) -> None:
        if is_fatal(error):
            raise error
        warnings.warn(f"No pairs for prompt number {number}: {error}", stacklevel=1)

    async def draw(numbers: range) -> list[PreferencePair]:
        gate, found = Semaphore(decoder.engine.rows), dict[int, list[PreferencePair]]()

        async def collect(number: int) -> None:
            found[number] = await pairing.draw(number, prompts[number], gate)

        await run_concurrently(numbers, collect, failed, len(numbers), None)
        return [pair for number in sorted(found) for pair in found[number]]

    starts = range(0, len(prompts), size := 4 * decoder.engine.rows)
    found = (background().run(draw(range(start, min(start + size, len(prompts))))) for start in starts)
    yield from distinct(chain.from_iterable(found))


def pair_kind(method: str, by: By | None) -> By:
    """Return `by`, or the default for the method. Raises SettingError for segments if the method does not support them."""
    siblings = [name for name, cls in method_classes().items() if cls.siblings]
    if by == "segments" and method not in siblings:
        raise SettingError(
            f"Method {method!r} gives no pairs of segments, because its candidates do not share a prefix. "
            f"Use 'answers', or one of these methods: {', '.join(siblings)}."
        )
    return by or ("segments" if method in siblings else "answers")


def distinct(pairs: Iterable[PreferencePair]) -> Iterator[PreferencePair]:
    """Yield the pairs without those whose texts occurred before."""
    seen: set[bytes] = set()
    for pair in pairs:
        key = hashlib.sha256(json.dumps([pair.prompt, pair.chosen, pair.rejected]).encode()).digest()
        if key not in seen:
            seen.add(key)
            yield pair


def segment_pairs(prompt: Prompt, result: Result, gap: float = 0.0) -> Iterator[PreferencePair]:
    """Yield the pairs of segments of a traced response. Responses that were cut off have none."""
    before, rest = prompt.text, result.text
    for segment in result.segments if result.finish_reason == "stop" else ():
        for rejected in segment.rejected:
            yield from _pair(before, rest, segment.reward, rejected.text, rejected.reward, gap)
        before, rest = before + segment.text, rest[len(segment.text) :]


def response_pairs(prompt: PromptLike, results: Iterable[Result], gap: float = 0.0) -> Iterator[PreferencePair]:
    """Yield the pair of the best and the worst complete response to a prompt, if there is one.

    The rejected candidates of a traced result with a single segment count as responses.
    """
    responses = [(r.text, r.reward, r.finish_reason) for r in results if r.reward is not None]
    for result in results:
        rejected = result.segments[0].rejected if len(result.segments) == 1 else ()
        responses += [(s.text, s.reward, s.finish_reason) for s in rejected if s.finish_reason and s.reward is not None]
    complete = [response for response in responses if response[2] == "stop" and response[0].strip()]
    if complete:
        best, worst = max(complete, key=itemgetter(1)), min(responses, key=itemgetter(1))
        context = prompt if isinstance(prompt, str) else tuple(prompt)
        texts = [text if isinstance(prompt, str) else text.strip() for text in (best[0], worst[0])]
        yield from _pair(context, texts[0], best[1], texts[1], worst[1], gap)


def check_suffix(path: Path) -> None:
    """Raise SettingError if pairs cannot be written to a file with this suffix."""
    check(path.suffix in (".jsonl", ".parquet"), f"The output must be a .jsonl or .parquet file, got {path.name!r}.")
    if path.suffix == ".parquet":
        arrow("parquet")


def write(path: Path, pairs: Iterable[PreferencePair]) -> int:
    """Write the pairs atomically, as JSON Lines or Parquet, and return their number. Raises SettingError."""
    check_suffix(path)
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
) -> Iterator[PreferencePair]:
    """Yield the pair of a better and a worse text, unless their rewards or texts do not differ."""
    if high is not None and low is not None and high - low > gap and better != worse and worse:
        yield PreferencePair(prompt, better, worse, high, low)
