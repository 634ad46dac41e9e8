"""GGUF files of classifiers of transformers, as llama.cpp's own conversion names and arranges their tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from cards.backends.files import TINY
from helpers.gguf_files import add_sizes, add_tokenizer

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "roberta": "bert", "bert": "bert"}


def write_classifier(model: PreTrainedModel, path: Path, *, head: str = "none", metadata: dict[str, Any] | None = None) -> Path:
    """Convert a classifier with the embedded tokenizer, in float32.

    head: where the head of a decoder goes: `tensor`, `metadata` or `none`. An encoder has its head as tensors.
    """
    config: Any = model.config
    encoder = config.model_type in ("roberta", "bert")
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, architecture)
    offset = config.pad_token_id + 1 if config.model_type == "roberta" else 0  # of positions
    add_sizes(writer, config.to_dict(), config.max_position_embeddings - offset)
    if encoder:
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_causal_attention(False)
        writer.add_token_type_count(config.type_vocab_size)
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        if getattr(config, "head_dim", None):
            writer.add_key_length(config.head_dim)
            writer.add_value_length(config.head_dim)
            writer.add_rope_dimension_count(config.head_dim)
    labels: list[str] = [(config.id2label or {})[i] for i in range(config.num_labels)]
    if (metadata is None or not any(key.endswith("output_labels") for key in metadata)) and len(labels) > 1:
        writer.add_classifier_output_labels(labels)
    for key, value in (metadata or {}).items():
        add = {list: writer.add_array, str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(key, value)  # type: ignore[operator]
    add_tokenizer(writer, TINY / "rm", {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}, encoder)
    names = gguf.get_tensor_name_map(
        next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), config.num_hidden_layers
    )
    for name, values in arrays(model).items():
        if name == "score.weight":
            if head == "metadata":
                writer.add_array("cards.score.weight", values.ravel().tolist())
            if head != "tensor":
                continue
        if name.startswith("pooler"):  # llama.cpp's conversion of BERT leaves it out
            continue
        if name.startswith("score"):
            name = "cls.output.weight"
        if name.startswith("classifier.") and config.model_type == "bert":
            name = name.replace("classifier", "classifier.out_proj")
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if "position_embeddings" in name:
            values = values[offset:]
        assert found or name.startswith("cls."), name
        writer.add_tensor(found or name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def arrays(model: PreTrainedModel) -> dict[str, NDArray[np.float32]]:
    """Return the weights by their name without the prefix of encoders, arranged as in GGUF files."""
    config: Any = model.config
    prefix = f"{model.base_model_prefix}." if ARCHITECTURES[config.model_type] == "bert" else ""
    found = {}
    for name, weight in model.state_dict().items():
        values = weight.float().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": getattr(config, "num_key_value_heads", 0)}
        count = heads.get(name.split(".")[-2])
        if count and ARCHITECTURES[config.model_type] == "llama":  # it rotates neighbours, transformers the halves of a head
            values = values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        found[name.removeprefix(prefix)] = values
    return found
