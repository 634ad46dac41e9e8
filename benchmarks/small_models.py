"""Small models with random weights of all families of transformers."""

from __future__ import annotations

from typing import Any, cast

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

WORDS = 97
CONTEXT = 96
WINDOW = 16
SIZES: dict[int, str] = {  # the small value of settings that many families share, by name
    WORDS: "vocab_size unpadded_vocab_size vocab_size_per_layer_input decoder_vocab_size encoder_hash_byte_group_vocab",
    32: "hidden_size d_model n_embd dim embedding_size word_embed_proj_dim d_embed emb_dim lru_width mamba_d_ssm "
    "attention_hidden_size input_embedding_size output_embedding_size embedding_dim cross_attention_hidden_size "
    "hidden_size_global true_hidden_size d_latents pooler_hidden_size out_hidden_size dim_model_base entity_emb_size",
    48: "intermediate_size ffn_dim n_inner dff d_inner d_ff decoder_ffn_dim encoder_ffn_dim ffn_hidden_size dim_ff "
    "intermediate_size_mlp feed_forward_size shared_intermediate_size dense_intermediate_size expert_ffn_hidden_size "
    "hidden_dim prompt_mid_dim",
    2: "num_key_value_heads n_kv_heads num_kv_heads swa_num_key_value_heads num_experts_per_tok moe_topk moe_k depth "
    "num_experts_per_token first_k_dense_replace topk_group n_group linear_num_key_heads "
    "num_codebooks num_self_attends_per_block",
    4: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers num_encoder_layers "
    "num_attention_heads n_head n_heads num_heads attention_heads encoder_attention_heads decoder_attention_heads "
    "num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads linear_num_value_heads n_mamba_heads "
    "mamba_n_heads "
    "num_local_experts num_experts n_routed_experts moe_num_experts num_self_attention_heads num_cross_attention_heads "
    "mamba_d_state state_size num_latents num_landmarks",
    8: "head_dim d_head kv_channels d_kv swa_head_dim linear_key_head_dim linear_value_head_dim qk_rope_head_dim "
    "qk_nope_head_dim v_head_dim index_head_dim attention_head_dim attention_head_size hidden_size_per_layer_input "
    "mamba_dt_rank query_pre_attn_scalar dim_head linear_head_dim rotary_dim time_step_rank laurel_rank",
    WINDOW: "index_n_heads moe_intermediate_size shared_expert_intermediate_size kv_lora_rank q_lora_rank sliding_window "
    "sliding_window_size attention_chunk_size window_size attention_window_size local_attention index_topk "
    "moe_shared_expert_intermediate_size chunk_size mamba_chunk_size local_attention_window_len",
    CONTEXT: "max_position_embeddings n_positions max_sequence_length max_seq_len model_max_length n_ctx max_target_positions "
    "context_length original_max_position_embeddings",
    0: "pad_token_id num_kv_shared_layers",
    1: "bos_token_id eos_token_id decoder_start_token_id",
}
UNSET = {"head_dim", "num_key_value_heads"}  # some models cannot be built without them, though they are None by default
HYBRID = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
WINDOWED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
MAMBA: dict[str, Any] = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1}
ENCODER_DECODER: dict[str, Any] = {"decoder_start_token_id": 0}
INDEXER: dict[str, Any] = {
    "indexer_n_heads": 16,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 16,
    "indexer_compress_ratio": 2,
}
SETTINGS: dict[str, dict[str, Any]] = {  # what a family needs beside the small sizes
    "bailing_hybrid": {"layer_types": HYBRID, "num_key_value_heads": 4, "n_group": 1, "topk_group": 1},
    "bart": ENCODER_DECODER,
    "bigbird_pegasus": ENCODER_DECODER,
    "bamba": {**MAMBA, "attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"layer_types": WINDOWED, "rope_parameters": dict.fromkeys(WINDOWED, ROPE)},
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dory": {"n_input_layers": 1, "n_output_layers": 1, "n_recurrent_layers": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "dots3_note": {"text_config": {"num_key_value_heads": 4}},
    "esm": {"vocab_size": 97},
    "esmc": {"num_key_value_heads": 4},
    "falcon_h1": {**MAMBA, "mamba_d_head": 8},
    "gemma3n_text": {"intermediate_size": 48},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {**MAMBA, "layer_types": HYBRID},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "kimi_linear": {"layer_types": HYBRID, "linear_num_heads": 4, "n_group": 1, "topk_group": 1},
    "layoutlmv3": {"coordinate_size": 5, "shape_size": 6},
    "lilt": {"hidden_size": 48, "channel_shrink_ratio": 4},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "longcat_flash": {"zero_expert_num": 2},
    "luke": {"entity_vocab_size": 97},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "mistral4": {"rope_parameters": {**ROPE, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": CONTEXT}},
    "mobilebert": {"intra_bottleneck_size": 32},
    "nystromformer": {"segment_means_seq_len": 96, "num_landmarks": 96},
    "qwen4_exp": {"text_config": {"layer_types": HYBRID, **INDEXER}},
    "qwen4_exp_text": {"layer_types": HYBRID, **INDEXER},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 12]},
    "roc_bert": {"enable_pronunciation": False, "enable_shape": False, "pronunciation_vocab_size": 97, "shape_vocab_size": 97},
    "t5": ENCODER_DECODER,
    "mt5": ENCODER_DECODER,
    "umt5": ENCODER_DECODER,
    "mbart": ENCODER_DECODER,
    "mvp": ENCODER_DECODER,
    "plbart": ENCODER_DECODER,
    "t5gemma": ENCODER_DECODER,
    "t5gemma2": ENCODER_DECODER,
    "xlstm": {"qk_dim_factor": 1.0, "ffn_round_up_to_multiple_of": 8},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 6,
        "attn_layer_period": 3,
        "attn_layer_offset": 2,
        "use_mamba_kernels": False,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
    },
    "zaya": {"num_experts_per_tok": 1},
}
SMALL = {name: value for value, names in SIZES.items() for name in names.split()}


def changes_for(config: PreTrainedConfig, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the constructor arguments that make a family small, from those its default configuration has."""
    known: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        part = config.__dict__.get(name, value)
        if isinstance(part, PreTrainedConfig):
            known[name] = changes_for(part, {})
        elif name in SMALL and (isinstance(value, int) or (value is None and (name in UNSET or name.endswith("_id")))):
            known[name] = SMALL[name]
    default = config.to_dict()
    if "num_key_value_heads" in known and default["num_key_value_heads"] in (None, default.get("num_attention_heads")):
        known["num_key_value_heads"] = SMALL["num_attention_heads"]
    for name, value in changes.items():
        known[name] = {**known.get(name, {}), **value} if isinstance(value, dict) and name in known else value
    return known


def small_config(kind: type[PreTrainedConfig], changes: dict[str, Any] | None = None) -> PreTrainedConfig:
    changes = changes or {}
    try:
        default = kind()
    except Exception:
        default = kind(**changes)
    return kind(**changes_for(default, changes))


def small_model(auto: Any, config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return a model whose weights are large enough that every layer and every token matters."""
    torch.manual_seed(0)
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(0.2 * torch.randn_like(weight))
            elif weight.dim() > 1 and weight.is_floating_point():
                weight.normal_(0, min(0.4, 1.5 * weight.shape[-1] ** -0.5))
    model = model.to(dtype)
    exact = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
    for name, module in model.named_modules():
        if exact & set(name.split(".")):
            module.float()  # as loading does
    return cast(PreTrainedModel, model)


def small_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose vocabulary is `<unk> </s> w2 w3 ...`: each word is one token."""
    vocabulary = {"<unk>": 0, "</s>": 1} | {f"w{i}": i for i in range(2, WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>", eos_token="</s>")
