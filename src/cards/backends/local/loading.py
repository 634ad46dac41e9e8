"""Load transformers models onto a device of this machine."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cards.backends.configuration import pick_dtype
from cards.backends.files import load_tokenizer, locate, unknown_model
from cards.errors import ModelError, SettingError


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one; `cuda` is the caller's current one, which the worker's thread does not know.

    Raises SettingError if the device does not exist.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise SettingError(f"Device {device!r} cannot be used: {reason}. Try 'cpu'.") from error


def load(
    auto: Any, name: str, embedded: str, device: torch.device, dtype: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer: `tiny` (the embedded one in folder `embedded`), another of the embedded ones, a folder, or
    a Hugging Face name.

    Raises UnknownNameError if there is no such model, ModelError if weights that matter are missing from it.
    """
    kind, source = pick_dtype(dtype, device), locate(name, embedded)
    try:
        model, report = auto.from_pretrained(source, dtype=kind, output_loading_info=True)
        tokenizer = load_tokenizer(source)
    except OSError as error:
        raise unknown_model(name) from error
    except ValueError as error:
        raise ModelError(f"Model {name!r} cannot be loaded: {error}") from error
    if missing := sorted(report["missing_keys"]):
        if any(key.startswith(("score", "classifier")) for key in missing):
            raise ModelError(f"Model {name!r} has no trained score head: a reward model is a trained sequence classifier.")
        raise ModelError(f"Model {name!r} lacks weights ({', '.join(missing[:3])}): it is no {auto.__name__[13:]}.")
    try:
        return model.to(device).eval(), tokenizer
    except torch.OutOfMemoryError as error:
        raise SettingError(
            f"Model {name!r} does not fit into the memory of {device}: choose a smaller one, another dtype or another device. "
            f"({error})"
        ) from error
