"""Options with the names that llama.cpp gives them: fields of its parameters, and a few of its programs."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cards.backends.llamacpp.library import amx_crashes, library
from cards.errors import SettingError, UnknownNameError, check

OWN = {  # decided by the engine
    "attention_type",
    "ctx_type",
    "embeddings",
    "kv_unified",
    "n_outputs_max",
    "n_outputs_max_per_seq",
    "n_rs_seq",
    "n_threads_batch",
    "no_alloc",
    "pooling_type",
    "swa_full",
    "vocab_only",
}
NUMBERS = {ctypes.c_int: int, ctypes.c_int32: int, ctypes.c_uint32: int, ctypes.c_float: float, ctypes.c_bool: bool}
TYPES = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q5_1": 7, "q5_0": 6, "q4_1": 3, "q4_0": 2, "iq4_nl": 20}  # for a cache
PREFIXES = {  # options whose values are names of constants
    "split_mode": "LLAMA_SPLIT_MODE_",
    "load_mode": "LLAMA_LOAD_MODE_",
    "rope_scaling_type": "LLAMA_ROPE_SCALING_TYPE_",
}
UNSIGNED = {"n_ctx", "n_seq_max", "n_batch", "n_ubatch", "yarn_orig_ctx"}
CACHE_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "auto": "f16"}  # by the name of a dtype
SWITCHES = {"yes": True, "true": True, "on": True, "1": True, "no": False, "false": False, "off": False, "0": False}


@dataclass
class Options:
    """Options for loading a file and for its context. `fields` are those of llama.cpp's two structs of parameters.

    Raises UnknownNameError or SettingError.
    """

    n_ctx: int | None = None
    n_seq_max: int | None = None
    n_threads: int | None = None
    lora: tuple[tuple[str, float], ...] = ()
    fields: dict[str, int | float | bool] = field(default_factory=dict)

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Options:
        llama, options = library(), cls()
        kinds = {
            name: NUMBERS[kind]
            for struct in (llama.llama_model_params, llama.llama_context_params)
            for name, kind in struct._fields_
            if kind in NUMBERS and name not in OWN
        }
        known = {*kinds, "flash_attn", "use_mmap", "use_mlock", "lora"}
        mapped, locked = True, False
        if amx_crashes(llama):
            options.fields["use_extra_bufts"] = False
        for name, value in given.items():
            if name not in known:
                raise UnknownNameError("option of llama.cpp", name, known)
            if name == "lora":
                options.lora = adapters(value)
            elif name in ("use_mmap", "use_mlock"):
                mapped, locked = (switch(name, value), locked) if name == "use_mmap" else (mapped, switch(name, value))
                mode = ("MMAP_MLOCK" if locked else "MMAP") if mapped else ("MLOCK" if locked else "NONE")
                options.fields["load_mode"] = getattr(llama, f"LLAMA_LOAD_MODE_{mode}")
            elif name == "flash_attn":
                options.fields["flash_attn_type"] = -1 if value == "auto" else int(switch(name, value))
            elif name in ("n_ctx", "n_seq_max", "n_threads"):
                setattr(options, name, number(name, value, int))
            elif name in ("type_k", "type_v"):
                options.fields[name] = cache_type(name, value)
            elif name in PREFIXES and not isinstance(value, int):
                options.fields[name] = constant(name, str(value))
            else:
                options.fields[name] = switch(name, value) if kinds[name] is bool else number(name, value, kinds[name])
        return options

    def apply(self, params: Any) -> None:
        """Set the fields that a struct of parameters has."""
        for name, _ in params._fields_:
            if name in self.fields:
                setattr(params, name, self.fields[name])


def constant(name: str, value: str) -> int:
    """Return the value of a named constant, such as `yarn`."""
    prefix, llama = PREFIXES[name], library()
    known = {key.removeprefix(prefix).lower(): key for key in vars(llama) if key.startswith(prefix)}
    if value.lower() not in known:
        raise UnknownNameError(f"value of {name}:", value, known)
    return int(getattr(llama, known[value.lower()]))


def cache_type(name: str, value: str) -> int:
    """Return the number of a type of keys or values, such as `q8_0`."""
    if value not in TYPES:
        raise UnknownNameError(f"value of {name}:", value, TYPES)
    return TYPES[value]


def switch(name: str, value: Any) -> bool:
    """Return a truth value from a truth value or its text."""
    if str(value).lower() not in SWITCHES:
        raise SettingError(f"{name} must be yes or no, got {value!r}.")
    return SWITCHES[str(value).lower()]


def number(name: str, value: Any, kind: type) -> Any:
    """Return a number from a number or its text."""
    try:
        found = kind(value)
    except (TypeError, ValueError):
        raise SettingError(f"{name} must be {'a whole number' if kind is int else 'a number'}, got {value!r}.") from None
    check(found >= 0 or name not in UNSIGNED, f"{name} must be at least 0, got {value!r}.")
    return found


def adapters(value: str | Iterable[Any]) -> tuple[tuple[str, float], ...]:
    """Return LoRA adapters and their scales from `FILE`, `FILE:SCALE`, or a sequence of files or (file, scale)."""
    found = []
    for item in [value] if isinstance(value, str | Path) else value:
        path, scale = item if isinstance(item, tuple) else (str(item), 1.0)
        if not Path(path).exists() and ":" in str(path):
            path, _, text = str(path).rpartition(":")
            scale = number("The scale of a LoRA adapter", text, float)
        check(Path(path).is_file(), f"The LoRA adapter must be a GGUF file, got {path!r}.")
        found.append((str(path), float(scale)))
    return tuple(found)


def parse_options(texts: Iterable[str]) -> dict[str, str]:
    """Return the options of `NAME=VALUE`. Raises SettingError."""
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        check(bool(name and equals), f"An option of llama.cpp is given as NAME=VALUE, such as n_gpu_layers=20, got {text!r}.")
        options[name] = value
    return options
