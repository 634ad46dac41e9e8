"""How a GGUF file is loaded: its device, options and cache, all checked before the weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cards.backends.llamacpp.header import Header
from cards.backends.llamacpp.library import library
from cards.backends.llamacpp.model import files_of
from cards.backends.llamacpp.options import CACHE_TYPES, TYPES, Options, cache_type, constant
from cards.errors import ModelError, UnknownNameError, check
from cards.memory import cache_size, check_fits, memory_at_hand

BITS = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q5_1": 6, "q5_0": 5.5, "q4_1": 5, "q4_0": 4.5, "iq4_nl": 4.5}
SIZES = {TYPES[name]: bits / 8 for name, bits in BITS.items()}  # bytes per number of a cache


@dataclass(frozen=True)
class Plan:
    """The header of a file and the options for loading it. `device` is `cpu` or `gpu`; slots and context are those requested.

    Make it with `of`. Raises MissingExtraError, UnknownNameError, ModelError or SettingError.
    """

    name: str
    header: Header
    options: Options
    device: str
    threads: int | None
    slots: int | None
    context: int | None

    @classmethod
    def of(
        cls,
        name: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        slots: int | None = None,
        context: int | None = None,
        threads: int | None = None,
        **options: Any,
    ) -> Plan:
        """Return the plan for a file. The options are those of `LlamaEngine.load`."""
        most = library().llama_max_parallel_sequences()
        files = files_of(name)
        header, given = Header(files), Options.read(options)
        place = "gpu" if uses_gpu(device, given) else "cpu"
        threads = given_once("threads", threads, "n_threads", given.n_threads)
        check(threads is None or threads > 0, f"threads must be at least 1, got {threads}.")
        slots = given_once("slots", slots, "n_seq_max", given.n_seq_max)
        check(slots is None or slots <= most, f"slots must be at most {most} with llama.cpp, got {slots}.")
        if given.n_ctx is not None:
            slots = slots or 1
            context = given_once("context", context, "n_ctx divided by the number of slots", given.n_ctx // max(slots, 1))
        set_types(dtype, given)
        for path, _ in given.lora:
            check_adapter(path, header.architecture)
        plan = cls(name, header, given, place, threads, slots, context)
        size = sum(file.stat().st_size for file in files)
        check_fits(name, size, plan.free_memory, "Choose a smaller model, or a file with fewer bits per weight.")
        plan.cache_size()
        return plan

    @property
    def free_memory(self) -> int | None:
        """The bytes of memory for the model, or None if they are unknown, as on a GPU."""
        return None if self.device == "gpu" and self.options.fields["n_gpu_layers"] else memory_at_hand()

    def cache_size(self) -> tuple[int, int]:
        """Return the number of rows and their length: those requested, otherwise what fits into the memory now."""
        longest, options = int(self.header.own("context_length", 0)), self.options
        stretched = any(name.startswith(("rope_", "yarn_")) for name in options.fields)
        check(
            self.context is None or (self.context >= 2 and (stretched or self.context <= longest)),
            f"context must be between 2 and {longest} for {self.name!r}, got {self.context}.",
        )
        needed = self._bytes_per_token(), self.free_memory, self._bytes_per_row()
        rows, length = cache_size(self.slots, self.context, longest, *needed)
        batch = options.fields.get("n_batch")
        check(batch is None or batch >= rows, f"n_batch must be at least the number of slots, {rows}, got {batch}.")
        return rows, length

    def _bytes_per_token(self) -> float:
        """Return the size of the keys and values of a token, at most."""
        own = self.header.own
        heads = np.asarray(own("attention.head_count", 0))
        width = int(own("embedding_length", 0)) / max(1, int(heads.max()))
        pairs = np.broadcast_to(own("attention.head_count_kv", heads), int(own("block_count", 1))).sum()  # of all layers
        per_pair = sum(
            SIZES[int(self.options.fields[f"type_{name[0]}"])] * float(own(f"attention.{name}_length", width))
            for name in ("key", "value")
        )
        return float(pairs) * per_pair or 1.0

    def _bytes_per_row(self) -> float:
        """Return the size of the state of a sequence, at most. llama.cpp keeps it in float32 for each layer with state."""

        def size(key: str) -> int:
            return int(self.header.own(key, 0))

        width, inner, state = size("embedding_length"), size("ssm.inner_size"), size("ssm.state_size")
        numbers = inner * state + max(0, size("ssm.conv_kernel") - 1) * (inner + 2 * size("ssm.group_count") * state)  # Mamba
        numbers += max(0, size("shortconv.l_cache") - 1) * width  # LFM2
        numbers += width * (size("wkv.head_size") + size("token_shift_count"))  # RWKV
        heads = np.broadcast_to(self.header.own("attention.head_count_kv", 0), size("block_count") or 1)
        layers = int((heads == 0).sum()) if (heads == 0).any() else len(heads)  # hybrids list their layers without attention
        return 4.0 * layers * numbers


def uses_gpu(device: str, options: Options) -> bool:
    """Return whether layers go to a GPU, and set how many. `cuda:1` chooses the second GPU. Raises SettingError."""
    supported = bool(library().llama_supports_gpu_offload())
    layers = options.fields.setdefault("n_gpu_layers", 0 if device == "cpu" else -1)
    if device in ("auto", "cpu"):
        return supported and layers != 0
    check(supported, f"Device {device!r} cannot be used: llama-cpp-python was compiled without support for a GPU. Use 'cpu'.")
    if index := device.partition(":")[2]:
        check(index.isdecimal(), f"A device is named cpu, cuda, metal, ... or cuda:1, got {device!r}.")
        options.fields |= {"main_gpu": int(index), "split_mode": constant("split_mode", "none")}
    return True


def set_types(dtype: str, options: Options) -> None:
    """Set the types of keys and values, unless they are given. Raises UnknownNameError or SettingError."""
    if dtype not in CACHE_TYPES:
        raise UnknownNameError("dtype", dtype, CACHE_TYPES)
    for field in ("type_k", "type_v"):
        options.fields.setdefault(field, cache_type(field, CACHE_TYPES[dtype]))
    if dtype == "float32":
        options.fields.setdefault("flash_attn_type", 0)  # flash attention rounds to float16 on a CPU
    quantised = SIZES[int(options.fields["type_v"])] < SIZES[TYPES["f16"]]
    check(
        not quantised or options.fields.get("flash_attn_type", -1) != 0,
        "A quantised type_v requires flash_attn. Leave type_v out, or set flash_attn=yes.",
    )


def check_adapter(path: str, architecture: str) -> None:
    """Raise ModelError unless a file is a LoRA adapter for an architecture."""
    header = Header(files_of(path))
    if header.metadata.get("general.type") != "adapter" or header.metadata.get("adapter.type") != "lora":
        raise ModelError(f"{path!r} is not a LoRA adapter. Convert one with convert_lora_to_gguf.py of llama.cpp.")
    if header.architecture != architecture:
        raise ModelError(f"The LoRA adapter {path!r} is for {header.architecture!r} models, not for {architecture!r}.")


def given_once(name: str, value: int | None, other: str, alias: int | None) -> int | None:
    """Return a value that was given under one of two names. Raises SettingError if they differ."""
    check(value is None or alias is None or value == alias, f"{name} is {value}, but {other} is {alias}: give one of them.")
    return alias if value is None else value
