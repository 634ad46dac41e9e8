"""Every supported architecture gives in slots what it gives without a cache."""

import random
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers as hf
from helpers.families import SMALL, lm_slots, small_lm

from cards.backends.configuration import context_length
from cards.backends.local.attention import SlotAttention
from cards.backends.local.cache import TorchCache
from cards.backends.local.lean import COPIED
from cards.backends.local.packing import SPREAD
from cards.backends.local.proof import lm_outputs
from cards.engines.slots import Slots
from cards.errors import ModelError, SettingError

GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 96}
FAMILIES: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (hf.LlamaConfig, {}),
    "mistral": (hf.MistralConfig, {"sliding_window": None, "head_dim": 8}),
    "mistral-windowed": (hf.MistralConfig, {"sliding_window": 7, "head_dim": 8}),
    "qwen2": (hf.Qwen2Config, {}),
    "qwen3": (hf.Qwen3Config, {"head_dim": 8}),
    "qwen3-windowed": (
        hf.Qwen3Config,
        {"head_dim": 8, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "phi3": (hf.Phi3Config, {}),
    "gpt2": (hf.GPT2Config, {**GPT2, "num_key_value_heads": 4}),
    "opt": (hf.OPTConfig, {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gpt-neox": (hf.GPTNeoXConfig, {}),
    "gemma2": (hf.Gemma2Config, {"head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 8}),
    "gemma3": (hf.Gemma3TextConfig, {"head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 8}),
    "granite": (hf.GraniteConfig, {"logits_scaling": 2.0, "residual_multiplier": 0.5}),
    "olmo2": (hf.Olmo2Config, {}),
    "mixtral": (hf.MixtralConfig, {"num_local_experts": 4, "sliding_window": None, "head_dim": 8}),
}
LEAN = ["llama", "mistral", "mistral-windowed", "qwen2", "qwen3", "qwen3-windowed"]


def make(family: str, seed: int = 0) -> Any:
    return small_lm(*FAMILIES[family], seed=seed)


def slots_of(model: hf.PreTrainedModel, rows: int, way: str | None = None) -> Slots:
    context = context_length(model, None)
    lean, whole = lm_outputs(model, context)
    ways = {None: (lean, whole), "lean": (lean,), "model": (whole,)}[way]
    return lm_slots(model, rows, context, ways)


@pytest.mark.parametrize(("family", "way"), [*((f, "model") for f in FAMILIES), *((f, "lean") for f in LEAN)])
@torch.inference_mode()
def test_ragged_reads_forks_and_rollbacks_equal_the_uncached_model(family: str, way: str) -> None:
    plain, model = make(family), make(family)
    slots = slots_of(model, rows=6, way=way)
    cache = cast(TorchCache, slots.cache)
    chance = random.Random(family)
    texts: list[list[int]] = [[chance.randrange(3, 97) for _ in range(chance.randrange(3, 20))] for _ in range(2)]
    for _ in range(12):
        rows = []
        for _ in range(chance.randrange(1, 6)):  # continue an earlier text, cut somewhere, by some tokens
            base = chance.choice(texts)
            text = base[: chance.randrange(1, len(base) + 1)] + [
                chance.randrange(3, 97) for _ in range(chance.randrange(1, 12))
            ]
            text = text[:90]
            slot, held = slots.acquire(text, len(text) - 1) or pytest.fail("an idle slot is there")
            rows.append((slot, text, held))
        rows.sort()
        cache.max_distance, cache.key_multiple = chance.choice(((SPREAD, 1), (slots.rows, 64)))  # as on a CPU and on a GPU
        logits = slots.read([(slot, text[held:]) for slot, text, held in rows])
        for (slot, text, _), got in zip(rows, logits, strict=True):
            expected = plain(torch.tensor([text])).logits[0, -1]
            torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)
            slots.release(slot)
            texts.append(text)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_half_precision_stays_near_float32(dtype: torch.dtype) -> None:
    plain, model = make("llama"), make("llama").to(dtype)
    slots = slots_of(model, rows=2)
    text = list(range(3, 40))
    slot, _ = slots.acquire(text, 0) or pytest.fail("an idle slot is there")
    slots.read([(slot, text[:20])])
    got = slots.read([(slot, text[20:])])[0]
    expected = plain(torch.tensor([text])).logits[0, -1]
    assert got.dtype == dtype
    assert (got.float() - expected).abs().max() < 0.05 * expected.abs().max()


@torch.inference_mode()
def test_model_stays_usable_outside_the_engine() -> None:
    plain, model = make("llama"), make("llama")
    slots_of(model, rows=2)
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(model(ids).logits, plain(ids).logits)
    options = {"max_new_tokens": 8, "do_sample": False}
    assert model.generate(ids, **options).tolist() == plain.generate(ids, **options).tolist()


@torch.inference_mode()
def test_a_model_can_be_saved_after_its_weights_were_joined(tmp_path: Path) -> None:
    plain, model = make("qwen2"), make("qwen2")
    slots_of(model, rows=2)
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(hf.AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_the_lean_pass_is_taken_where_it_fits(family: str) -> None:
    lean, _ = lm_outputs(make(family), 96)
    assert (lean is not None) == (family in LEAN)


@torch.inference_mode()
def test_a_lean_pass_that_differs_is_not_taken() -> None:
    model = make("llama")
    model.model.layers[1].self_attn.scaling *= 2
    reference = model(torch.tensor([[5, 6, 7]])).logits
    lean, whole = lm_outputs(model, 96)
    model.model.layers[2].input_layernorm = torch.nn.Identity()
    slots = lm_slots(model, 2, 96, [lean, whole])
    assert cast(TorchCache, slots.cache).forward is whole
    assert not torch.equal(model(torch.tensor([[5, 6, 7]])).logits, reference)


@torch.inference_mode()
@pytest.mark.parametrize("small", [0, COPIED])
def test_weights_stay_what_they_were_and_two_engines_share_large_ones(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cards.backends.local.lean.COPIED", small)
    plain, model = make("qwen2"), make("qwen2")
    for _ in range(2):
        slots_of(model, rows=2)
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=0, atol=0)
    q, k = (getattr(model.model.layers[0].self_attn, part).weight for part in ("q_proj", "k_proj"))
    assert (q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()) == (small == 0)


def test_layers_in_the_hands_of_others_are_left_to_the_model() -> None:
    model = make("llama")
    model.model.layers[1].mlp.up_proj._hf_hook = object()
    assert lm_outputs(model, 96)[0] is None


def test_context_is_bounded_by_the_model() -> None:
    model = make("llama")
    assert context_length(model, None) == 96
    assert context_length(model, 50) == 50
    with pytest.raises(SettingError, match="context must be between"):
        context_length(model, 97)


def test_context_of_length_dependent_rope_stays_where_it_is_constant() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0, "original_max_position_embeddings": 48}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, rope_parameters=rope))
    assert context_length(model, None) == 48


SINKS: dict[str, Any] = {"head_dim": 8, "sliding_window": 7, "num_local_experts": 4, "num_experts_per_tok": 2}


CAPPED: dict[str, Any] = {"head_dim": 8, "sliding_window": 7, "attn_logit_softcapping": 1.0}
OWN_ATTENTION = [
    (hf.GptOssConfig, SINKS, "eager"),
    (hf.Gemma2Config, CAPPED, "eager"),
    (hf.MistralConfig, {"sliding_window": 7}, "sdpa"),
]


def with_attention(config: type, changes: dict[str, Any], attention: str) -> Any:
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(config(**{**SMALL, **changes}), attn_implementation=attention).eval()


@pytest.mark.parametrize(("config", "changes", "attention"), OWN_ATTENTION)
@torch.inference_mode()
def test_the_models_own_forward_stays_what_it_was(config: type, changes: dict[str, Any], attention: str) -> None:
    model = with_attention(config, changes, attention)
    ids = torch.arange(3, 43).unsqueeze(0)
    before = model(ids).logits
    try:
        slots = slots_of(model, rows=2)
        slots.read([((slots.acquire([5, 6, 7], 0) or (0, 0))[0], [5, 6, 7])])
    except ModelError:
        assert config is hf.GptOssConfig
    assert model.config._attn_implementation == attention
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize(("config", "changes", "attention"), OWN_ATTENTION)
@torch.inference_mode()
def test_other_threads_use_the_models_own_attention_during_a_step(
    config: type, changes: dict[str, Any], attention: str
) -> None:
    model = with_attention(config, changes, attention)
    ids = torch.arange(3, 43).unsqueeze(0)
    before = model(ids).logits
    with SlotAttention(model):  # as the worker thread does
        assert torch.equal(model(ids).logits, before)
