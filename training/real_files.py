"""Write the trained upper layers into copies of the GGUF file: the LM, and the reward model with its head as metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import quantize
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from cards.backends.llamacpp.heads import WEIGHT

ARCHITECTURE = "gemma3"
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def renamed(state: Mapping[str, Tensor], first: int) -> dict[str, Tensor]:
    """Return tensors by their names in a GGUF file. `first` is the number of the first layer."""
    found = {"output_norm.weight": state["norm.weight"]}
    for name, values in state.items():
        _, _, rest = name.partition("layers.")
        if rest:
            number, _, part = rest.removesuffix(".weight").partition(".")
            found[f"blk.{int(number) + first}.{NAMES[part]}.weight"] = values
    return found


def write(base: Path, output: Path, state: Mapping[str, Tensor], first: int, head: Tensor | None = None) -> None:
    """Copy a GGUF file with other upper layers, as 8-bit matrices, and a head [1, width].

    llama.cpp adds the 1 of Gemma's norms at conversion, so the weights of norms are stored with it.
    """
    reader = gguf.GGUFReader(base)
    writer = gguf.GGUFWriter(output.with_suffix(".unfinished"), ARCHITECTURE)
    for field in reader.fields.values():
        if field.name != gguf.Keys.General.ARCHITECTURE and not field.name.startswith("GGUF."):
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    if head is not None:
        writer.add_array(WEIGHT, head.float().flatten().tolist())
    new, tensors = renamed(state, first), dict[str, tuple[Any, gguf.GGMLQuantizationType]]()
    for tensor in reader.tensors:
        if tensor.name not in new:
            tensors[tensor.name] = tensor.data, tensor.tensor_type
            continue
        values = new.pop(tensor.name).float().numpy()
        stored = gguf.GGMLQuantizationType.F32 if values.ndim == 1 else gguf.GGMLQuantizationType.Q8_0
        tensors[tensor.name] = values + np.float32(1) if values.ndim == 1 else quantize(values, stored), stored
    assert not new, f"{base} has no tensors {sorted(new)}"
    for name, (data, stored) in tensors.items():
        writer.add_tensor_info(name, data.shape, data.dtype, data.nbytes, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for data, _ in tensors.values():
        writer.write_tensor_data(data)
    writer.close()
    output.with_suffix(".unfinished").replace(output)


def write_reward(base: Path, folder: Path, first: int, name: str = "reward", head: Tensor | None = None) -> None:
    """Write NAME.gguf: the layers of the reward model with its own or another head [1, width]."""
    state = torch.load(folder / "reward.pt")
    layers = {name.removeprefix("layers."): values for name, values in state.items() if name.startswith("layers.")}
    write(base, folder / f"{name}.gguf", layers, first, state["head.weight"] if head is None else head)


def write_lm(base: Path, folder: Path, first: int) -> None:
    write(base, folder / "tuned.gguf", torch.load(folder / "tuned.pt"), first)


def write_folders(folder: Path, first: int) -> None:
    """Write the folders `tuned` and `reward` in the format of transformers, in bfloat16."""
    base, tokenizer = folder / "transformers", AutoTokenizer.from_pretrained(folder / "transformers")
    lm = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    judge = AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.bfloat16, num_labels=1)
    judge.config.pad_token_id = tokenizer.pad_token_id
    tuned, reward = torch.load(folder / "tuned.pt"), torch.load(folder / "reward.pt")
    for name, values in tuned.items():
        lm.get_parameter(f"model.{_from_first(name, first)}").data.copy_(values)
    judge.score.weight.data.copy_(reward.pop("head.weight"))
    for name, values in reward.items():
        judge.get_parameter(f"model.{_from_first(name.removeprefix('layers.'), first)}").data.copy_(values)
    for name, model in (("tuned", lm), ("reward", judge)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def _from_first(name: str, first: int) -> str:
    """Return the name in the whole model of a parameter of its upper layers."""
    kind, _, rest = name.partition(".")
    number, _, rest = rest.partition(".")
    return f"layers.{int(number) + first}.{rest}" if kind == "layers" else name
