"""Run a golden case on the code that is installed and return what it gave, as JSON-ready data without times and versions."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Sequence, Set
from dataclasses import asdict
from typing import Any

from cases import CACHE, MAX_TOKENS, METHODS, PROMPTS, SEED

import cards
from cards.registry import make_method

VERDICTS = ("Accepted", "Rejected", "Fallback")


def rounded(value: Any) -> Any:
    """The value with short floats."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def method(name: str) -> dict[str, Any]:
    """The responses of a case: requests alone with their verdicts, then all of them together."""
    case = METHODS[name]
    engine = cards.load_engine("tiny", **case.engine)
    reward = None if case.reward is None else cards.load_reward(case.reward)
    decoder = cards.Decoder(engine, reward, make_method(case.method, **case.settings))
    prompts = PROMPTS[: case.prompts] * case.repeats
    options = {"max_tokens": MAX_TOKENS, "trace": True, **case.options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # many fallbacks
        alone, verdicts = [], []
        for number, prompt in enumerate(prompts):
            events = list(decoder.stream(prompt, seed=SEED + number, **options))
            alone.append(_result(events[-1].result, case.varies))  # type: ignore[union-attr]
            verdicts.append(_verdicts(events))
        called = _result(decoder(prompts[0], seed=SEED, **options), case.varies | CACHE)
        results = asyncio.run(_together(decoder, prompts, options))
        together = [_result(result, case.together) for result in results]
    asyncio.run(decoder.aclose())
    return {"alone": alone, "verdicts": verdicts, "called": called, "together": together}


async def _together(decoder: cards.Decoder, prompts: Sequence[Any], options: dict[str, Any]) -> list[cards.Result]:
    requests = [decoder.agenerate(prompt, seed=SEED + number, **options) for number, prompt in enumerate(prompts)]
    return await asyncio.gather(*requests)


def _result(result: Any, varies: Set[str]) -> Any:
    found = asdict(result)
    usage = found["usage"].items()
    found["usage"] = {key: value for key, value in usage if key not in varies and not key.endswith("seconds")}
    return rounded(found)


def _verdicts(events: Sequence[Any]) -> list[dict[str, Any]]:
    """What became of each candidate. Of candidates with the same tokens, rounding decides which one has the higher reward:
    they all have the number of the first."""
    found: list[dict[str, Any]] = []
    first: dict[Any, int] = {}
    for event in events:
        if type(event).__name__ not in VERDICTS:
            continue
        values = {key: value for key, value in asdict(event).items() if key != "segment"}
        *place, number = values.items()
        twins = [values[number[0]], first.get((*place, event.segment.token_ids), number[1])]
        first[(*place, event.segment.token_ids)] = min(twins)
        found.append({"event": type(event).__name__, "tokens": event.segment.token_ids, **values})
    for verdict in found:
        *place, number = list(verdict.items())[2:]
        verdict[number[0]] = first[(*place, verdict.pop("tokens"))]
    return found
