"""Each family runs in slots, or with the model's own cache, or is refused: never differently from the model itself."""

import asyncio
from typing import Any, cast

import pytest
import torch
import transformers as hf
from helpers.families import lm_slots, small_lm
from helpers.random_models import word_tokenizer

from cards.backends.local.engine import TransformersEngine
from cards.backends.local.own_cache import OwnCache
from cards.backends.local.proof import lm_outputs, lm_proof
from cards.backends.local.structure import obstacle
from cards.engines.slots import Slots
from cards.errors import ModelError
from cards.events import Prompt, Response

EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
JAMBA = {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1, "use_mamba_kernels": False, "mamba_d_state": 8}
OTHERS: dict[str, tuple[type, dict[str, Any], str]] = {
    "lfm2": (hf.Lfm2Config, {"layer_types": ["conv", "conv", "full_attention"]}, r"layers \(conv\)"),
    "jamba": (hf.JambaConfig, JAMBA, "layers"),
    "mamba": (hf.MambaConfig, {"state_size": 4}, "layers"),
    "gpt-oss": (hf.GptOssConfig, {**EXPERTS, "head_dim": 8, "sliding_window": 16}, "sinks"),
    "llama4": (
        hf.Llama4TextConfig,
        {**EXPERTS, "num_experts_per_tok": 1, "intermediate_size_mlp": 48, "head_dim": 8, "attention_chunk_size": 32},
        "windows or chunks",
    ),
    "phimoe": (hf.PhimoeConfig, {**EXPERTS, "sliding_window": 32}, "windows or chunks"),
    "doge": (hf.DogeConfig, {"sliding_window": 32}, "mask of its own"),
    "bloom": (hf.BloomConfig, {"n_head": 4, "n_layer": 2}, "attention interface"),
    "recurrent-gemma": (hf.RecurrentGemmaConfig, {"lru_width": 32, "attention_window_size": 16}, "layers"),
    "falcon-alibi": (hf.FalconConfig, {"alibi": True}, "attention interface"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", OTHERS)
@torch.inference_mode()
def test_layers_that_slots_run_wrongly_are_found_by_structure(family: str, dtype: torch.dtype) -> None:
    config, changes, reason = OTHERS[family]
    model = small_lm(config, changes).to(dtype)
    with pytest.raises(ModelError, match=f"^{type(model).__name__} cannot be decoded in slots: it[^:]*{reason}"):
        lm_slots(model, 2, 64)


@torch.inference_mode()
def test_a_chunk_beyond_the_context_is_no_obstacle() -> None:
    config, changes, _ = OTHERS["phimoe"]
    model = small_lm(config, changes)
    assert obstacle(model, 32)[0] is None
    assert obstacle(model, 33)[0] is not None


def llama(scale: float = 1.0, layers: int = 3, seed: int = 0) -> Any:
    model = small_lm(hf.LlamaConfig, {"num_hidden_layers": layers, "tie_word_embeddings": False}, seed=seed)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(scale)  # sharp attention amplifies rounding
    return model


@torch.inference_mode()
def test_a_right_model_with_much_rounding_noise_is_accepted() -> None:
    model = llama(scale=6, layers=10).bfloat16()
    text = torch.randint(3, 97, (1, 60), generator=torch.Generator().manual_seed(1))
    exact = llama(scale=6, layers=10)(text).logits[0, -8:]
    assert ((model(text).logits[0, -8:] - exact).norm() / exact.norm()).item() > 0.1  # the noise itself
    lm_slots(model, 2, 64)


def look_ahead(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """Let each token see the next one: of a text, only the last output depends on what follows."""
    return output + torch.nn.functional.pad(output[:, 1:], (0, 0, 0, 1))


def count_tokens(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """Let each token know how many follow, but not which ones."""
    return output * (1 + output.shape[1] / 10)


@pytest.mark.parametrize("later", [look_ahead, count_tokens])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1, 3], ids=["", "more noise"])
def test_a_model_that_reads_later_tokens_is_refused_and_no_other(scale: float, dtype: torch.dtype, later: Any) -> None:
    for seed in range(4):
        model = llama(scale, layers=10, seed=seed).to(dtype)
        lm_proof(model, 64)
        model.get_input_embeddings().register_forward_hook(later)
        with pytest.raises(ModelError, match="is not a causal LM: later tokens change its outputs"):
            lm_proof(model, 64)


def test_a_pass_that_fails_is_not_reported_as_reading_later_tokens() -> None:
    config = {"is_decoder": True, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 12]}
    model = small_lm(hf.ReformerConfig, config)  # it pads texts of 72 tokens to 128, above its limit
    with pytest.raises(ModelError, match=r"^The forward pass of ReformerModelWithLMHead fails: Sequence Length: 128 has to be"):
        lm_proof(model, 96)


@torch.inference_mode()
def test_an_error_of_one_position_is_compared_with_the_noise_of_one_position() -> None:
    model = llama(scale=4, layers=10).bfloat16()
    proof = lm_proof(model, 64)
    assert proof.error(proof.rounded, 1.0) > proof.accepted(0.5)
    proof.check("is wrong", proof.rounded, quantile=1.0)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 5e-5), (torch.bfloat16, 0.2)])
@torch.inference_mode()
def test_an_error_above_the_models_own_noise_is_refused(dtype: torch.dtype, error: float) -> None:
    model = llama().to(dtype)
    _, right = lm_outputs(model, 64)
    chance = torch.Generator().manual_seed(3)

    def wrong(input_ids: torch.Tensor, position_ids: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        logits = right(input_ids, position_ids, last)
        return logits + error * logits.float().std() * torch.randn(logits.shape, generator=chance).to(dtype)

    lm_slots(model, 2, 64, [right])
    with pytest.raises(ModelError, match="differ from a full pass"):
        lm_slots(model, 2, 64, [wrong])


@pytest.mark.parametrize("family", [*OTHERS])
@torch.inference_mode()
def test_other_models_run_with_their_own_cache_as_generate_does(family: str, caplog: pytest.LogCaptureFixture) -> None:
    config, changes, _ = OTHERS[family]
    model = small_lm(config, changes)
    engine = TransformersEngine(model, word_tokenizer(97), slots=3, context=64)
    assert "own cache" in caplog.text
    assert type(engine.scheduler.slots.cache) is OwnCache
    prompt = list(range(3, 33))
    made = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=79, pad_token_id=0)
    text: list[int] = []
    for expected in made[0, len(prompt) :].tolist():
        logits = asyncio.run(engine.logits(Prompt("", tuple(prompt)), Response("", tuple(text))))
        assert int(logits[-1].argmax()) == expected
        text.append(expected)


@pytest.mark.parametrize("family", ["lfm2", "jamba", "gpt-oss"])
@torch.inference_mode()
def test_forks_and_rollbacks_of_own_caches_equal_the_model(family: str) -> None:
    config, changes, _ = OTHERS[family]
    model = small_lm(config, changes)
    slots = Slots(OwnCache(model, 3, 64))
    prompt = list(range(3, 20))

    def check(text: list[int]) -> int:
        slot, held = slots.acquire(text, len(text) - 1) or pytest.fail("an idle slot is there")
        got = slots.read([(slot, text[held:])])[0]
        torch.testing.assert_close(got, model(torch.tensor([text]), use_cache=False).logits[0, -1], atol=1e-4, rtol=1e-3)
        return slot

    slots.release(check(prompt))
    busy = [check([*prompt, i]) for i in (30, 31, 32)]  # forks
    for slot in busy:
        slots.release(slot)
    for i in (33, 34):
        slots.release(check([*prompt, i]))  # rollbacks to the end of the prompt
    slots.release(check([*prompt, 34, 5, 6]))
    assert len(cast(OwnCache, slots.cache).forks) <= 3
