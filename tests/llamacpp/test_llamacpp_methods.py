"""Every method gives on llama.cpp what it gives on transformers, with the embedded models in float32."""

from __future__ import annotations

import asyncio
import json
import os
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from cases import METHODS, Case

from cards import Decoder
from cards.backends.llamacpp.engine import LlamaEngine
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.engines.base import Engine
from cards.engines.prompt_lookup import PromptLookupEngine, is_lookup
from cards.engines.speculative import SpeculativeEngine
from cards.events import Result
from cards.methods import CARDS
from cards.methods.base import Method
from cards.registry import load_engine, load_reward, make_method, method_class, with_models

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")]

QUESTION: Any = [{"role": "user", "content": "What did you think of the new Star Wars film?"}]
SEEDS = 50
METHOD_SEEDS = int(os.environ.get("CARDS_METHOD_SEEDS", "3"))  # of each method; 50 take over an hour
# Seeds for which a margin below 1e-6 decides on a rejected candidate, with the same response (docs/LOG.md).
ROUNDING = {"cards-width-4": [23], "cards-auto-width": [23], "prm-beam-search": [47], "deepconf": [18]}
FILES = {"tiny": "lm.gguf", "tiny-draft": "draft.gguf", "tiny-aligned": "aligned.gguf"}
PARTS: dict[Any, Any] = {}  # models that settings name, by their names


def told(result: Result) -> list[Any]:
    """Return the text, segments, rewards and verdicts of a result, with rewards and entropies rounded.

    Rejected candidates are sorted, because rounding decides which of several equal ones is the best and is not among them.
    """
    segments = json.loads(result.to_json())["segments"]
    for segment in segments:
        segment["rejected"].sort(key=lambda candidate: candidate["token_ids"])
    return [result.text, result.finish_reason, rounded(segments)]


def rounded(value: Any) -> Any:
    """Return the value with its floats in 3 digits after the point."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return pytest.approx(value, abs=2e-3, rel=1e-3) if isinstance(value, float) else value


def runs_here(case: Case) -> bool:
    """Return whether a case needs no single layers, which llama.cpp does not give."""
    return "skip_layers" not in case.engine and "layers" not in method_class(case.method).needs


async def test_cards_decides_as_with_transformers_for_50_seeds(
    engine: LlamaEngine, tiny: TransformersEngine, tiny_reward: ClassifierReward
) -> None:
    for seed in range(SEEDS):
        found, wanted = [
            await Decoder(one, tiny_reward, CARDS(max_rejections=8)).agenerate(QUESTION, seed=seed, max_tokens=48, trace=True)
            for one in (engine, tiny)
        ]
        assert told(found) == told(wanted), f"seed {seed}"


@pytest.mark.parametrize("name", [name for name, case in METHODS.items() if runs_here(case)])
async def test_a_method_decides_as_with_transformers(
    name: str, engine: LlamaEngine, tiny: TransformersEngine, gguf_folder: Path
) -> None:
    case = METHODS[name]
    reward = None if case.reward is None else load_reward(case.reward)
    guide = {"guide": load_reward("implicit:tiny-aligned,tiny")} if case.method == "cascade" else {}  # the default of tiny
    settings = case.settings | guide
    results = []
    for one, translate in ((engine, True), (tiny, False)):
        method = with_models(make_method(case.method, **settings), one, partial(engine_of, translate, gguf_folder))
        model = drafted(one, case, translate, gguf_folder)
        results.append([told(await generated(Decoder(model, reward, method), seed, case)) for seed in range(METHOD_SEEDS)])
    differing = [seed for seed, (found, wanted) in enumerate(zip(*results, strict=True)) if found != wanted]
    differing = [seed for seed in differing if seed not in ROUNDING.get(name, [])]
    assert not differing, [(seed, results[0][seed], results[1][seed]) for seed in differing]


async def generated(decoder: Decoder, seed: int, case: Case) -> Result:
    return await decoder.agenerate(QUESTION, seed=seed, max_tokens=16, trace=True, **case.options)


def drafted(engine: Engine, case: Case, translate: bool, folder: Path) -> Engine:
    """Return the engine with the draft of a case."""
    if "draft" not in case.engine:
        return engine
    name, gamma = case.engine["draft"], case.engine.get("gamma", 4)
    if is_lookup(name):
        return PromptLookupEngine.named(name, engine, gamma)
    return SpeculativeEngine(engine, engine_of(translate, folder, name), gamma)


def engine_of(translate: bool, folder: Path, name: str) -> Engine:
    """Load an embedded model from its GGUF file, or with transformers."""
    key = name, translate
    if key not in PARTS:
        PARTS[key] = load_engine(str(folder / FILES[name]), dtype="float32") if translate else load_engine(name)
    return cast(Engine, PARTS[key])


async def test_a_seed_gives_one_text_at_every_width_alone_and_among_others(
    engine: LlamaEngine, tiny_reward: ClassifierReward
) -> None:
    def decoder(width: Any) -> Decoder:
        method: Method = CARDS(width=width, max_rejections=8)
        return Decoder(engine, tiny_reward, method)

    for seed in range(6):
        alone = {(await decoder(width).agenerate(QUESTION, seed=seed, max_tokens=32)).text for width in (1, 4, "auto")}
        others = (decoder("auto").agenerate(f"Story number {i}:", seed=i, max_tokens=32) for i in range(16))
        among, *_ = await asyncio.gather(decoder("auto").agenerate(QUESTION, seed=seed, max_tokens=32), *others)
        assert alone == {among.text}
