"""GGUF files of the embedded LMs, converted from their weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from cards.backends.files import TINY

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WHOLE = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
MATCHED = ("\n\n", *"0123456789", *(f" {digit}" for digit in range(10)))  # tokens that the pre-tokenizer isolates
BYTE_LEVEL = {" ": "\u0120", "\n": "\u010a"}


def write_gguf(
    folder: str,
    path: Path,
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    *,
    changes: Mapping[str, NDArray[np.float32]] | None = None,
    split: int = 0,
) -> Path:
    """Convert an embedded LM (`lm`, `draft` or `aligned`), with matrices of a type, and return the path of the file.

    changes: values to add to tensors, by name. split: the number of tensors in each part of a split file, or 0.

    llama.cpp has no pre-tokenizer like that of the embedded models. With the one of GPT-2, and digits and blank lines as
    tokens that are matched first, it splits ASCII text in the same way.
    """
    source = TINY / folder
    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split)
    add_sizes(writer, config, config["max_position_embeddings"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if "cards_entropy_threshold" in config:
        writer.add_float32("cards.entropy_threshold", config["cards_entropy_threshold"])
    add_tokenizer(writer, source, config)
    for name, weight in tensors(source, config):
        kind = quantization if weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        if changes and name in changes:
            weight = weight + changes[name]
        writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_sizes(writer: gguf.GGUFWriter, config: Mapping[str, Any], context: int) -> None:
    """Add the sizes that every architecture has, from a configuration of transformers."""
    writer.add_context_length(context)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])


def write_adapter(path: Path, parts: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]], alpha: float) -> Path:
    """Write a LoRA adapter with the matrices A [rank, inputs] and B [outputs, rank] of tensors, by name."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for name, (a, b) in parts.items():
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer: gguf.GGUFWriter, source: Path, config: dict[str, Any], pairs: bool = False) -> None:
    """Add the tokenizer of a folder. `pairs`: with the separators of RoBERTa, `<s>first</s></s>second</s>`, and no template."""
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    names = [name for name, _ in sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])]
    special = {token["id"] for token in tokenizer["added_tokens"]}
    matched = {"".join(BYTE_LEVEL.get(character, character) for character in text): text for text in MATCHED}
    kinds = [
        gguf.TokenType.CONTROL if i in special else gguf.TokenType.USER_DEFINED if name in matched else gguf.TokenType.NORMAL
        for i, name in enumerate(names)
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([matched.get(name, name) for name in names])
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(pairs)
    if pairs:
        writer.add_sep_token_id(config["eos_token_id"])
        writer.add_add_eos_token(True)
        writer.add_add_sep_token(True)
    else:
        writer.add_chat_template((source / "chat_template.jinja").read_text(encoding="utf-8"))


def tensors(source: Path, config: dict[str, Any]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the tensors under their names in GGUF."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, weight in load_file(source / "model.safetensors").items():
        name, values = name.removeprefix("model.").removesuffix(".weight"), weight.astype(np.float32)
        if not name.startswith("layers."):
            yield f"{WHOLE[name]}.weight", values
            continue
        _, layer, part = name.split(".", 2)
        if count := heads.get(part.rpartition(".")[2]):  # llama.cpp rotates neighbours, transformers the halves of a head
            values = values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        yield f"blk.{layer}.{LAYER[part]}.weight", values


def write_mamba(path: Path, context: int = 512) -> Path:
    """Write a Mamba with random weights, a model with state, with the vocabulary of the embedded models."""
    source = TINY / "lm"
    config = json.loads((source / "config.json").read_text())
    width, inner, state, rank, kernel = 64, 128, 16, 4, 4
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(2)
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    writer.add_layer_norm_rms_eps(1e-5)
    add_tokenizer(writer, source, config)
    random = np.random.default_rng(0)
    shapes = {"token_embd.weight": (config["vocab_size"], width), "output_norm.weight": (width,)}
    for i in range(2):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (width,),
            f"blk.{i}.ssm_in.weight": (2 * inner, width),
            f"blk.{i}.ssm_conv1d.weight": (inner, kernel),
            f"blk.{i}.ssm_conv1d.bias": (inner,),
            f"blk.{i}.ssm_x.weight": (rank + 2 * state, inner),
            f"blk.{i}.ssm_dt.weight": (inner, rank),
            f"blk.{i}.ssm_dt.bias": (inner,),
            f"blk.{i}.ssm_d": (inner,),
            f"blk.{i}.ssm_out.weight": (width, inner),
        }
        writer.add_tensor(f"blk.{i}.ssm_a", -np.tile(np.arange(1, state + 1, dtype=np.float32), (inner, 1)))
    for name, shape in shapes.items():
        writer.add_tensor(name, (random.standard_normal(shape) * 0.5).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
