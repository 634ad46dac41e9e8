"""The check of a GGUF file without its vocabulary and its weights, so that a wrong file is refused at once."""

from __future__ import annotations

import ctypes
from typing import Any

from cards.backends.classifier import Output
from cards.backends.files import Kind
from cards.backends.llamacpp.header import Header
from cards.backends.llamacpp.heads import is_classifier, usable_head
from cards.backends.llamacpp.library import library
from cards.backends.llamacpp.model import files_of, open_model
from cards.backends.llamacpp.plan import Plan
from cards.errors import ModelError


def check_gguf(
    name: str, kind: Kind, *, output: Output = None, form: str | None = None, target: float | None = None, **options: Any
) -> list[Any]:
    """Check that a file is complete, that llama.cpp knows its architecture, and that it holds a model of this kind.

    Options are those of the loaders, and are checked as they do, also against the free memory. The list is empty: a GGUF file
    has nothing to download, and tokenizers are compared at loading, because a large vocabulary takes longer to read than all
    that is checked here. Raises MissingExtraError, UnknownNameError, ModelError or SettingError.
    """
    llama = library()
    plan = Plan.of(name, **options)
    if kind == "rm":
        usable_head(plan.header, name, output, form)
    params = llama.llama_model_default_params()
    params.vocab_only = True
    overrides = (llama.llama_model_kv_override * 2)()  # the second one, which is empty, ends the list
    overrides[0].tag, overrides[0].key = llama.LLAMA_KV_OVERRIDE_TYPE_STR, b"tokenizer.ggml.model"
    overrides[0].value.val_str = b"no_vocab"
    params.kv_overrides = ctypes.cast(overrides, dict(params._fields_)["kv_overrides"])
    pointer = open_model(name, files_of(name), params)
    try:
        if kind == "lm":
            check_generates(pointer, plan.header, name)
    finally:
        llama.llama_model_free(pointer)
    return []


def check_generates(pointer: Any, header: Header, name: str) -> None:
    """Raise ModelError if a model of llama.cpp is not a causal LM that it runs token by token."""
    llama, problem = library(), ""
    if llama.llama_model_has_encoder(pointer):
        problem = "it has an encoder, whose models run with transformers"
    elif not llama.llama_model_has_decoder(pointer) or is_classifier(header):
        problem = "it does not generate text. A reward model is given with --reward"
    elif llama.llama_model_is_diffusion(pointer):
        problem = "it is a diffusion model, which does not generate text from left to right"
    elif header.metadata.get("tokenizer.ggml.model", "no_vocab") in ("no_vocab", "none"):
        problem = "the file has no vocabulary"
    if problem:
        raise ModelError(f"{name!r} cannot be used as a language model: {problem}.")
