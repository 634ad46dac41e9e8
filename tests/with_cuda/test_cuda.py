"""On a GPU: the texts of the CPU, the oracle's verdicts, two devices, half precision, graphs. Run by `make test-cuda`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest
import torch
from helpers.cards_reference import Oracle, Settings
from helpers.random_models import CONTEXT, END, Pair, words

import cards
from cards.backends.local.cache import TorchCache
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.graphs import StepGraphs
from cards.backends.local.rewards import ClassifierReward
from cards.methods import Vanilla

if not torch.cuda.is_available():
    pytest.skip("There is no GPU for torch here.", allow_module_level=True)

PLACES = [("cuda", "cuda"), ("cuda:0", "cpu"), ("cpu", "cuda:0"), ("cuda:0", "cuda:1")]
QUESTIONS = ["How do I bake bread?", "What is a good name for a dog?", "Tell me about the sea.", "Why is the sky blue?"]
PROMPTS: list[list[cards.Message]] = [
    [{"role": "user", "content": f"{question} {i}"}] for i in range(2) for question in QUESTIONS
]


def decoder(lm: str, rm: str, dtype: str, width: int | str = "auto") -> cards.Decoder:
    if max(lm, rm) == "cuda:1" and torch.cuda.device_count() < 2:
        pytest.skip("There is one GPU.")
    engine = TransformersEngine.load("tiny", device=lm, dtype=dtype, slots=16, context=256)
    reward = ClassifierReward.load("tiny", device=rm, dtype=dtype, slots=16, context=256)
    return cards.Decoder(engine, reward, cards.CARDS(target=1.0, width=width))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def expected() -> list[cards.Result]:
    return decoder("cpu", "cpu", "float32").batch(PROMPTS, max_tokens=32)


@pytest.mark.parametrize(("lm", "rm"), PLACES)
@pytest.mark.parametrize("width", [1, 4, "auto"])
def test_texts_are_those_of_the_cpu(lm: str, rm: str, width: int | str, expected: list[cards.Result]) -> None:
    decode = decoder(lm, rm, "float32", width)
    alone = [decode(prompt, seed=i, max_tokens=32) for i, prompt in enumerate(PROMPTS[:2])]
    together = decode.batch(PROMPTS, max_tokens=32)
    for got in (alone, together):
        assert [r.token_ids for r in got] == [r.token_ids for r in expected[: len(got)]]
        assert [r.reward for r in got] == pytest.approx([r.reward for r in expected[: len(got)]], rel=1e-3, abs=1e-3)


@pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_oracle_on_the_gpu_says_the_same(kind: str) -> None:
    pair = Pair.make(kind, torch.float64)
    for model in (pair.lm, pair.rm):
        torch.nn.Module.to(model, "cuda")
    settings = Settings(target=1.2, entropy_threshold=2.9, min_segment=2, max_segment=6, max_tokens=12, top_k=30)
    options = {name: value for name, value in vars(settings).items() if name != "max_tokens"}
    decode = cards.Decoder(pair.engine(slots=8), pair.reward(slots=8), cards.CARDS(**options))
    for seed in range(20):
        prompt = list(range(2 + seed, 9 + 2 * seed))[: CONTEXT // 2]
        pieces = Oracle(pair.lm, pair.rm, frozenset([END]), settings).answer(prompt, seed)
        result = decode(words(prompt), seed=seed, max_tokens=settings.max_tokens)
        assert [s.token_ids for s in result.segments] == [p.kept.token_ids for p in pieces]
        assert [s.reward for s in result.segments] == pytest.approx([p.kept.reward for p in pieces])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
async def test_half_precision_rewards_are_near_those_of_float32(dtype: str) -> None:
    exact = ClassifierReward.load("tiny", device="cpu", dtype="float32", context=256)
    decode = decoder("cuda", "cuda", dtype)
    for prompt, result in zip(PROMPTS, await decode.abatch(PROMPTS, max_tokens=32), strict=True):
        [score] = await exact.score(decode.engine.encode(prompt), [cards.Response(result.text, result.token_ids)])
        assert result.reward == pytest.approx(score, abs=0.2)


def graphs_of(engine: cards.Engine) -> StepGraphs | None:
    assert isinstance(engine, TransformersEngine)
    return cast(TorchCache, engine.scheduler.slots.cache).graphs


@pytest.mark.parametrize("count", [1, 8])
def test_texts_are_the_same_with_graphs(count: int) -> None:
    found = []
    for graphs in (False, True):
        engine = TransformersEngine.load("tiny", device="cuda", dtype="float32", slots=8, context=256, graphs=graphs)
        results = cards.Decoder(engine, None, Vanilla()).batch(PROMPTS[:count], max_tokens=48)
        found.append([result.token_ids for result in results])
        assert (graphs_of(engine) is not None) == graphs
    assert found[0] == found[1]
    assert len(graphs_of(engine).graphs) >= 1  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_uses_paged_attention_and_graphs(dtype: str) -> None:
    engine = TransformersEngine.load("tiny", device="cuda", dtype=dtype, slots=8, context=256)
    assert cast(TorchCache, engine.scheduler.slots.cache).paged
    cards.Decoder(engine, None, Vanilla()).batch(PROMPTS[:3], max_tokens=16)
    assert graphs_of(engine) is not None


def test_a_decoding_step_waits_only_for_what_it_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TransformersEngine.load("tiny", device="cuda", dtype="bfloat16", slots=8, context=256)
    decode = cards.Decoder(engine, None, Vanilla(top_k=30, top_p=0.9))
    expected = decode(PROMPTS[0], max_tokens=24).token_ids  # captures the graphs
    fetch = engine._fetch

    def allowed(results: Sequence[torch.Tensor]) -> list[list[float]]:
        torch.cuda.set_sync_debug_mode("default")
        try:
            return fetch(results)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    monkeypatch.setattr(engine, "_fetch", allowed)
    try:
        torch.cuda.set_sync_debug_mode("error")
        assert decode(PROMPTS[0], max_tokens=24).token_ids == expected
    finally:
        torch.cuda.set_sync_debug_mode("default")
