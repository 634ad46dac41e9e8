"""Loading of transformers models, and the proof that the slots give what the model itself gives."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from cards.backends.local.attention import NAME
from cards.backends.local.lean import Output, lean
from cards.engines.slots import Slots
from cards.errors import ModelError, SettingError, UnknownNameError

TINY = Path(__file__).parents[2] / "tiny"
EMBEDDED = {"tiny-draft": "draft", "tiny-aligned": "aligned", "tiny-gold": "gold"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
OTHER = "its attention or state does not go through transformers' attention interface. Use another engine for it."
DUMMY_MASK = torch.zeros(1, 1, 1, 1)  # a 4-D mask is passed through, which saves making one that nobody reads


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


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and float32 elsewhere."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, [*DTYPES, "auto"])
    return DTYPES[dtype]


def locate(name: str, embedded: str) -> str:
    """Where a model is: an embedded one's folder (that of `tiny` is `embedded`), or the name itself, a folder or a Hugging
    Face name. Raises UnknownNameError for what looks like a slip, without asking the network."""
    own = EMBEDDED | {"tiny": embedded}
    source = str(TINY / own[name]) if name in own else name
    if not Path(source).exists() and get_close_matches(name, _known(), cutoff=0.7):
        raise _unknown(name)
    return source


def _known() -> list[str]:
    return ["tiny", *EMBEDDED, *(p.name for p in Path().iterdir() if (p / "config.json").exists())]


def _unknown(name: str) -> UnknownNameError:
    return UnknownNameError(
        "model",
        name,
        _known(),
        "A model is 'tiny', a folder with config.json, or a Hugging Face name that can be reached or is cached.",
    )


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
        tokenizer = AutoTokenizer.from_pretrained(source)
    except OSError as error:
        raise _unknown(name) from error
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


def skeleton(auto: Any, source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model without its weights, for engines that load these themselves, and its tokenizer.

    Raises UnknownNameError if there is no such model, ModelError if transformers does not know its kind.
    """
    try:
        config = AutoConfig.from_pretrained(source)
        with torch.device("meta"):
            model = auto.from_config(config)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except OSError as error:
        raise _unknown(source) from error
    except ValueError as error:
        raise ModelError(f"Model {source!r} cannot be loaded: {error}") from error
    with suppress(OSError):  # many models have no such file
        model.generation_config = GenerationConfig.from_pretrained(source)
    return model.eval(), tokenizer


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that end an answer: the generation config's, else the tokenizer's."""
    ids = getattr(model.generation_config, "eos_token_id", None)
    ids = tokenizer.eos_token_id if ids is None else ids
    return frozenset([] if ids is None else [ids] if isinstance(ids, int) else ids)


def context_of(model: PreTrainedModel, wanted: int | None) -> int:
    """Tokens a sequence may have: what is wanted, within what the model can do. Default: at most 2048."""
    config = model.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None) or 2048
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):  # their frequencies depend on the longest row of a batch
        most = min(most, rope.get("original_max_position_embeddings") or most)
    if wanted is not None and not 2 <= wanted <= most:
        raise SettingError(f"context must lie in [2, {most}] for this model, not {wanted}.")
    return wanted or min(most, 2048)


def flops_per_token(model: PreTrainedModel) -> float:
    """2 x parameters, word vectors that are only looked up left out (attention over the context is not counted)."""
    looked_up = cast(Tensor, model.get_input_embeddings().weight)
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    tied = head is not None and head.weight is looked_up
    return 2.0 * (sum(p.numel() for p in model.parameters()) - (0 if tied else looked_up.numel()))


def slotted(
    model: PreTrainedModel,
    outputs: Sequence[Callable[..., Tensor] | None],
    rows: int,
    context: int,
    reference: Callable[[Tensor], Tensor],
) -> Slots:
    """Slots that run the first of `outputs(input_ids, position_ids, last)` that gives what `reference(input_ids)` does.

    Raises ModelError if none does: the model then keeps state, or computes attention, in a way that slots do not know.
    """
    config = model.config.get_text_config()
    ids = torch.randint(0, config.vocab_size, (1, 21), generator=torch.Generator().manual_seed(0)).to(model.device)
    ids = ids[:, :context]
    try:
        with torch.inference_mode():
            expected = reference(ids).float()
            model.set_attn_implementation(NAME)
            for output in filter(None, outputs):
                slots = Slots(output, rows, context, model.device)
                error = _error(slots, ids[0].tolist(), expected)
                if error < (1e-3 if model.dtype in (torch.float32, torch.float64) else 0.1):
                    slots.flops = flops_per_token(model)
                    return slots
    except torch.OutOfMemoryError as problem:
        raise SettingError(
            f"{rows} slots of {context} tokens do not fit into the memory of {model.device} beside {type(model).__name__}: "
            f"lower slots or context. ({problem})"
        ) from problem
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as problem:
        raise ModelError(f"{type(model).__name__} cannot be decoded in slots ({problem}): {OTHER}") from problem
    raise ModelError(
        f"{type(model).__name__} cannot be decoded in slots (read in pieces, it differs from a full pass by {error:.2g}): "
        f"{OTHER}"
    )


def _error(slots: Slots, row: list[int], expected: Tensor) -> float:
    """How far the output after a row that is read in pieces is from what it should be."""
    slot, _ = slots.acquire(row, 0) or (0, 0)
    for piece in filter(None, (row[:5], row[5:6], row[6:])):
        got = slots.read([(slot, piece)]).float()
    slots.release(slot)
    return ((got - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()


def accepts(function: Callable[..., Any], argument: str) -> bool:
    return argument in inspect.signature(function).parameters


def lm_outputs(model: PreTrainedModel, context: int) -> tuple[Output | None, Output]:
    """Ways to the next-token logits [rows, vocabulary] of packed tokens, at the packed indices `last`; the fastest first."""
    keeps = accepts(model.forward, "logits_to_keep")
    mask = DUMMY_MASK.to(model.device)

    def output(input_ids: Tensor, position_ids: Tensor, last: Tensor) -> Tensor:
        keep = {"logits_to_keep": last} if keeps else {}
        out = model(input_ids=input_ids, position_ids=position_ids, attention_mask=mask, use_cache=False, **keep)
        return cast(Tensor, out.logits[0] if keeps else out.logits[0, last])

    return lean(model, getattr(model, "lm_head", None), context), output
