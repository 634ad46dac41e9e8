"""Decoding steps as graphs give the texts of steps without them. The stand-in for CUDA graphs runs on the CPU."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers as hf
from helpers.families import small_lm
from helpers.random_models import Pair, word_tokenizer, words
from helpers.recorded_graphs import RecordedGraphs, use_recorded_graphs
from torch import Tensor

from cards import CARDS, Decoder, Entropy
from cards.backends.local import graphs as graphs_module
from cards.backends.local import paged as paged_module
from cards.backends.local import proof as proof_module
from cards.backends.local.cache import TorchCache
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.graphs import StepGraphs
from cards.backends.local.transfer import pinned, to_device
from cards.engines.base import Ask
from cards.events import Response
from cards.methods import BestOfN, Vanilla
from cards.sampling import Sampling

FAMILIES: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (hf.LlamaConfig, {}),
    "gpt2": (hf.GPT2Config, {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 96, "num_key_value_heads": 4}),
    "gpt-neox": (hf.GPTNeoXConfig, {}),
    "mistral-windowed": (hf.MistralConfig, {"sliding_window": 7, "head_dim": 8}),
    "gemma2": (hf.Gemma2Config, {"head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 8}),
    "gemma3": (hf.Gemma3TextConfig, {"head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 8}),
    "qwen3": (hf.Qwen3Config, {"head_dim": 8}),
}
PROMPTS = [words(range(3, 3 + n)) for n in (2, 9, 30, 14, 5, 21)]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> RecordedGraphs:
    return use_recorded_graphs(monkeypatch)


def cache_of(engine: TransformersEngine) -> TorchCache:
    return cast(TorchCache, engine.scheduler.slots.cache)


def texts(engine: TransformersEngine) -> list[Any]:
    """Decode a prompt alone, then several in fewer slots, so that rows join and leave, then one with what the cache holds."""
    engine.end_ids = frozenset()
    plain = Decoder(engine, None, Vanilla(temperature=0.8, top_k=30))
    results = [plain(PROMPTS[2], max_tokens=38)]
    engine.forget()
    results += plain.batch(PROMPTS, max_tokens=12)
    results.append(plain(PROMPTS[0], seed=8, max_tokens=4))
    return [result.token_ids for result in results]


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_equal_those_without_graphs(family: str, recorded: RecordedGraphs) -> None:
    model = small_lm(*FAMILIES[family]).double()
    tokenizer = word_tokenizer(97)
    expected = texts(TransformersEngine(copy.deepcopy(model), tokenizer, slots=4, context=96, graphs=False))
    assert recorded.captured == 0
    engine = TransformersEngine(model, tokenizer, slots=4, context=96)
    assert texts(engine) == expected
    shapes = list(cache_of(engine).graphs.graphs)  # type: ignore[union-attr]
    assert {rows for rows, _ in shapes} == {1, 2, 4}
    assert {keys for _, keys in shapes} == {16, 32, 64, 96}
    assert recorded.replayed > 2 * recorded.captured


def test_cards_and_best_of_n_write_the_same_text_with_graphs(llama_float64: Pair, recorded: RecordedGraphs) -> None:
    def written(graphs: bool) -> list[Any]:
        engine, reward = llama_float64.engine(slots=8, graphs=graphs), llama_float64.reward(slots=8)
        found = []
        for method in (CARDS(target=1.0, entropy_threshold=2.9, min_segment=2, max_segment=6), BestOfN(n=5)):
            found += Decoder(engine, reward, method).batch(PROMPTS[:3], max_tokens=16)
        return [(result.token_ids, result.reward) for result in found]

    expected = written(graphs=False)
    got = written(graphs=True)
    assert [ids for ids, _ in got] == [ids for ids, _ in expected]
    assert [reward for _, reward in got] == pytest.approx([reward for _, reward in expected])
    assert recorded.replayed


def test_contrasted_layers_are_the_same_with_graphs(llama_float64: Pair, recorded: RecordedGraphs) -> None:
    found = []
    for graphs in (False, True):
        engine = llama_float64.engine(slots=2, graphs=graphs).contrast_layers((0, 1), 0.1)
        found.append(Decoder(engine, None, Vanilla())(PROMPTS[1], seed=3, max_tokens=12).token_ids)
    assert found[0] == found[1]
    assert recorded.replayed > 5


def test_shapes_are_powers_of_two_up_to_the_cache() -> None:
    graphs = StepGraphs(lambda *_: torch.zeros(0), 12, 1000, torch.device("cpu"))
    assert [graphs.shape(rows, 1)[0] for rows in (1, 2, 3, 5, 8, 9, 12)] == [1, 2, 4, 8, 8, 12, 12]
    assert [graphs.shape(1, keys)[1] for keys in (1, 256, 257, 512, 513, 1000)] == [256, 256, 512, 512, 1000, 1000]


def test_the_least_recently_used_graph_is_dropped(monkeypatch: pytest.MonkeyPatch, recorded: RecordedGraphs) -> None:
    monkeypatch.setattr(graphs_module, "MOST", 2)
    graphs = StepGraphs(lambda inputs, *_: inputs.double().unsqueeze(1) + 1, 8, 64, torch.device("cpu"))
    for shape in ((1, 16), (2, 16), (1, 16), (4, 16)):
        values = np.arange(shape[0])
        assert graphs.run(shape, values, shape[0])[:, 0].tolist() == (values + 1).tolist()
    assert list(graphs.graphs) == [(1, 16), (4, 16)]
    assert recorded.captured == 3


def refused(*arguments: Any) -> Any:
    raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be ...")


def wrong(run: Callable[[], Tensor], *arguments: Any) -> Any:
    return lambda: run().mul_(1.1), None


@pytest.mark.parametrize(("capture", "reason"), [(refused, "operation not permitted"), (wrong, "its outputs differ by 0.1")])
def test_a_step_that_cannot_be_captured_runs_without_graphs_and_says_so_once(
    capture: Any, reason: str, monkeypatch: pytest.MonkeyPatch, llama_float64: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    expected = texts(llama_float64.engine(slots=4))
    use_recorded_graphs(monkeypatch)
    monkeypatch.setattr(graphs_module, "capture", capture)
    engine = llama_float64.engine(slots=4)
    assert texts(engine) == expected
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert f"run without CUDA graphs, which is slower: {reason}" in lines[0]


def test_experts_whose_forward_pass_reads_numbers_run_without_graphs(recorded: RecordedGraphs) -> None:
    config, changes = hf.MixtralConfig, {"num_local_experts": 4, "sliding_window": None, "head_dim": 8}
    model = small_lm(config, changes).double()
    model.set_experts_implementation("eager")
    found = [
        texts(TransformersEngine(copy.deepcopy(model), word_tokenizer(97), slots=4, context=96, graphs=graphs))
        for graphs in (False, True)
    ]
    assert found[0] == found[1]
    assert recorded.captured == recorded.replayed == 0


class Waits:
    """Counts what a step takes to the host and to the device."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        self.fetched = self.sent = 0
        for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero"):
            patched.setattr(Tensor, name, self._counted(getattr(Tensor, name)))
        for module in ("cache", "packing", "engine"):
            patched.setattr(f"cards.backends.local.{module}.to_device", self._sending(to_device))
        patched.setattr(graphs_module, "pinned", self._sending(pinned))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tensor: Tensor, *args: Any, **options: Any) -> Any:
            self.fetched += 1
            return function(tensor, *args, **options)

        return counted

    def _sending(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            self.sent += 1
            return function(*args)

        return counted


@pytest.mark.parametrize("graphs", [False, True])
async def test_a_decoding_step_waits_for_the_device_once(
    graphs: bool, monkeypatch: pytest.MonkeyPatch, llama_float32: Pair, recorded: RecordedGraphs
) -> None:
    monkeypatch.setattr("cards.backends.local.sampling.LOOKS_FOR_TIES", ())  # as on a GPU
    engine = llama_float32.engine(slots=4, graphs=graphs)
    engine.end_ids = frozenset()
    asks = [
        Ask(engine.encode(PROMPTS[2]), Response(), 16, n=3, seed=seed, sampling=Sampling(0.8, 30, 0.9), boundary=boundary)
        for seed in range(2)  # the first captures the graphs
        for boundary in [Entropy(1, 16, threshold=99.0)]
    ]
    found: list[tuple[int, int]] = []
    waits = Waits(monkeypatch)
    step = engine.scheduler.step

    def counted() -> None:
        ready, waits.fetched, waits.sent = len(engine.scheduler.active) == 3, 0, 0
        step()
        if ready:
            found.append((waits.fetched, waits.sent))

    monkeypatch.setattr(engine.scheduler, "step", counted)
    for ask in asks:
        found.clear()
        async with aclosing(engine.propose(ask)) as batches:
            assert [len(s.token_ids) async for batch in batches for s in batch] == [16] * 3
    assert len(found) > 10
    assert set(found) == {(1, 2)}  # the numbers that the host needs; the tokens of the pass, and the numbers to draw with


def varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: Tensor,
    block_table: Tensor,
) -> Tensor:
    """The kernel of torch, in operations of fixed shapes."""
    assert enable_gqa
    assert key.shape[1] % paged_module.PAGE == 0
    assert {part.dtype for part in (cu_seq_q, cu_seq_k, seqused_k, block_table)} == {torch.int32}
    tokens, heads, rows = query.shape[0], query.shape[1], len(seqused_k)
    row = torch.bucketize(torch.arange(tokens), cu_seq_q[1:], right=True).clamp(max=rows - 1)
    position = seqused_k[row] - (cu_seq_q[row + 1] - torch.arange(tokens))
    keys = torch.arange(min(max_k, key.shape[1]))
    hidden = keys > position.unsqueeze(1)
    if window_size[0] >= 0:
        hidden |= keys < position.unsqueeze(1) - window_size[0]
    k, v = (part[block_table[row, 0].long(), : len(keys)].repeat_interleave(heads // part.shape[2], 2) for part in (key, value))
    scores = torch.einsum("thd,tkhd->thk", query, k) * (scale if scale is not None else query.shape[-1] ** -0.5)
    return torch.einsum("thk,tkhd->thd", scores.masked_fill(hidden.unsqueeze(1), -torch.inf).softmax(-1), v)


@contextmanager
def paged_attention(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setattr("torch.nn.attention.varlen.varlen_attn", varlen)
        patched.setattr(proof_module, "has_pages", lambda device, dtype: True)
        yield


@pytest.mark.parametrize(
    ("family", "graphs"), [("llama", True), ("mistral-windowed", True), ("gemma3", False), ("gpt2", False)]
)
def test_paged_attention_writes_the_same_texts(
    family: str, graphs: bool, monkeypatch: pytest.MonkeyPatch, recorded: RecordedGraphs
) -> None:
    model = small_lm(*FAMILIES[family]).double()
    options: dict[str, Any] = {"slots": 4, "context": 96, "graphs": graphs}
    expected = texts(TransformersEngine(copy.deepcopy(model), word_tokenizer(97), **options | {"graphs": False}))
    with paged_attention(monkeypatch):
        engine = TransformersEngine(model, word_tokenizer(97), **options)
        assert cache_of(engine).paged
        assert cache_of(engine).layers[0][0].shape[1] == paged_module.PAGE
        assert texts(engine) == expected
    assert bool(recorded.replayed) == graphs


def test_layers_that_paged_attention_does_not_run_use_the_other(
    monkeypatch: pytest.MonkeyPatch, recorded: RecordedGraphs
) -> None:
    model = small_lm(*FAMILIES["gemma2"]).double()  # caps its attention
    with paged_attention(monkeypatch):
        engine = TransformersEngine(model, word_tokenizer(97), slots=2, context=64)
    assert not cache_of(engine).paged
    assert cache_of(engine).graphs is not None
    assert Decoder(engine, None, Vanilla())(PROMPTS[0], max_tokens=8).token_ids


def test_results_of_a_step_are_fetched_together(llama_float64: Pair) -> None:
    fetched = llama_float64.engine(slots=2)._fetch([torch.tensor([0.25, 2.0]), torch.tensor([7, -1, 96])])
    assert fetched == [[0.25, 2.0], [7.0, -1.0, 96.0]]
