"""GGUF files with random weights: vocabularies of SentencePiece, sliding windows, and hybrid models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from cards.backends.files import TINY
from helpers.gguf_files import add_sizes, add_tokenizer
from helpers.text_tokenizers import BYTES, SPECIAL, text_tokenizer

Weights = Mapping[str, NDArray[Any]]


def add_vocabulary(writer: gguf.GGUFWriter, kind: str) -> None:
    """Add a tokenizer of `text_tokenizers`: llama_2 and gemma as SPM, unigram as UGM."""
    tokenizer = text_tokenizer(kind)
    model = tokenizer.backend_tokenizer.model
    names = [str(tokenizer.convert_ids_to_tokens(i)) for i in range(len(tokenizer))]
    special = {"<unk>": gguf.TokenType.UNKNOWN} | dict.fromkeys((*SPECIAL[1:], "<think>"), gguf.TokenType.CONTROL)
    kinds = special | dict.fromkeys(BYTES, gguf.TokenType.BYTE)
    if kind == "unigram":
        scores = dict(_state(model)["vocab"])
    else:  # SPM merges the pair whose piece has the highest score, which is that of the first merge
        merges = ["".join(pair) for pair in _state(model)["merges"]]
        scores = {name: -float(i + 1) for i, name in enumerate(merges)}
    writer.add_tokenizer_model("t5" if kind == "unigram" else "llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(names)
    writer.add_token_scores([scores.get(name, 0.0 if name in special else -1000.0) for name in names])
    writer.add_token_types([kinds.get(name, gguf.TokenType.NORMAL) for name in names])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(3)
    writer.add_add_bos_token(kind != "unigram")
    writer.add_add_space_prefix(kind != "gemma")


def _state(model: Any) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(model.__getstate__())
    return state


def write_file(writer: gguf.GGUFWriter, weights: Weights) -> None:
    """Add tensors and write the file."""
    for name, weight in weights.items():
        writer.add_tensor(name, np.ascontiguousarray(weight, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_llama(path: Path, kind: str, context: int = 256) -> Path:
    """Write a very small Llama with this vocabulary."""
    width, inner, size = 32, 48, len(text_tokenizer(kind))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_rope_dimension_count(width // 4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(size)
    add_vocabulary(writer, kind)
    shapes = {"token_embd": (size, width), "output_norm": (width,), "output": (size, width)}
    shapes |= {f"blk.0.{name}": (width, width) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
    shapes |= {f"blk.0.{name}": (inner, width) for name in ("ffn_gate", "ffn_up")}
    shapes |= {"blk.0.ffn_down": (width, inner), "blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,)}
    random = np.random.default_rng(0)
    write_file(writer, {f"{name}.weight": random.standard_normal(shape) * 0.3 for name, shape in shapes.items()})
    return path


def embedded_config() -> dict[str, Any]:
    """Return the configuration of the embedded LM, which names its special tokens and the size of its vocabulary."""
    config: dict[str, Any] = json.loads((TINY / "lm" / "config.json").read_text())
    return config


def write_model(path: Path, model: Any) -> Path:
    """Convert a Gemma 3 or LFM2 of transformers, with the vocabulary of the embedded models."""
    config = model.config
    gemma = config.model_type == "gemma3_text"
    arch = gguf.MODEL_ARCH.GEMMA3 if gemma else gguf.MODEL_ARCH.LFM2
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    add_sizes(writer, config.to_dict(), config.max_position_embeddings)
    if gemma:
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_head_count_kv([config.num_key_value_heads * (kind == "full_attention") for kind in config.layer_types])
        writer.add_shortconv_l_cache(config.conv_L_cache)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_layer_norm_rms_eps(config.norm_eps)
    add_tokenizer(writer, TINY / "lm", embedded_config())
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    weights = {}
    for name, weight in model.state_dict().items():
        values = weight.float().numpy()
        if gemma and name.endswith("norm.weight"):  # Gemma multiplies by one more than the weight
            values = values + 1
        if name != "lm_head.weight":
            weights[str(names.get_name(name, (".weight",)))] = values.squeeze()
    write_file(writer, weights)
    return path
