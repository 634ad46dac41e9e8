"""Loading of transformers models onto a device of this machine."""

from __future__ import annotations

import importlib.util
import logging
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cards.backends.checkpoint import NO_HEAD, Checkpoint, brief
from cards.backends.classifier import Output, labels_of, output_weights
from cards.backends.configuration import context_length, resolve_dtype
from cards.backends.files import TINY, Kind, ModelFolder
from cards.backends.forms import form_template
from cards.backends.local.adapters import adapter_shapes, with_adapter, without_wrapper
from cards.backends.local.memory import free_memory, weights_size
from cards.backends.quiet import quiet
from cards.engines.worker import DeviceWorker
from cards.errors import CardsError, ModelError, SettingError, check
from cards.memory import check_fits
from cards.threads import Threads, usable_threads

OUTPUT_LAYERS = ("score.weight", "classifier.weight", "out_proj.weight")  # of score heads
LEGACY = ("lm_head.", "rotary_emb.inv_freq", "position_ids", ".masked_bias", ".attn.bias")  # weights without effect


def resolve_device(device: str) -> torch.device:
    """Return the torch device for a name. `auto` means CUDA if available, and the CPU otherwise.

    `cuda` becomes the caller's current device here, because the worker thread does not know it.
    Raises SettingError if the device does not exist.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise SettingError(f"Device {device!r} cannot be used: {reason}. Try 'cpu'.") from error


def worker_on(device: torch.device, threads: int | None = None) -> DeviceWorker:
    """Return the worker of a device, which computes with `threads` CPU threads from now on.

    With None, a number given before stays. Otherwise a worker of the CPU uses `usable_threads()`, at most the number that
    torch has in the calling thread, and fewer while other processes use the CPUs. Raises SettingError.
    """
    check(threads is None or threads > 0, f"threads must be at least 1, got {threads}.")
    worker = DeviceWorker.on(device)
    fresh = worker.threads is None or "torch" not in worker.setters
    if threads is not None or (fresh and device.type == "cpu"):
        around = torch.get_num_threads()
        known = worker.threads if threads is None else None
        worker.use(known or Threads(threads, min(around, usable_threads())), torch=partial(_set_threads, around=around))
    return worker


def _set_threads(number: int, around: int) -> None:
    """Set torch's number of threads in this thread. Threads that start later get the number `around`."""
    torch.set_num_threads(number)
    other = Thread(target=torch.set_num_threads, args=(around,))  # the last call sets the number for new threads
    other.start()
    other.join()


def open_checkpoint(
    name: str,
    kind: Kind,
    *,
    device: str = "auto",
    dtype: str = "auto",
    context: int | None = None,
    trust_remote_code: bool = False,
    token: str | None = None,
    found: ModelFolder | None = None,
    output: Output = None,
    form: str | None = None,
    **_: Any,
) -> tuple[Checkpoint, torch.device, torch.dtype]:
    """Return a checkpoint that can be loaded in this process, as far as this is known without weights, its device and dtype.

    output, form: those of a reward (see `Classifier`). Raises as `load`.
    """
    place = resolve_device(device)
    resolve_dtype(dtype, place)  # raises here, before files are read
    checkpoint = Checkpoint.open(name, kind, trust_remote_code=trust_remote_code, token=token, found=found)
    checkpoint.check_quantization()
    if kind == "lm" and checkpoint.config.to_dict().get("quantization_config", {}).get("load_in_8bit"):
        raise eight_bit(name)
    checkpoint.check_weights()
    if kind == "rm":
        form_template(form)
        if checkpoint.adapter is None and (checkpoint.config.architectures or [""])[0].endswith("ForSequenceClassification"):
            output_weights(labels_of(checkpoint.config), output, name)
    if context is not None and checkpoint.adapter is None:
        context_length(checkpoint.without_weights(), context)
    config = checkpoint.config
    stored = cast("torch.dtype | None", config.dtype or config.get_text_config().dtype)
    small = checkpoint.base.folder.is_relative_to(TINY)  # embedded models gain no time from half precision
    exact = resolve_dtype(dtype, place, None if small else stored)
    check_memory(checkpoint, exact, place)
    return checkpoint, place, exact


def check_memory(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
    """Raise SettingError if the weights on this machine do not fit into the free memory of the device."""
    files = [file for file in checkpoint.weight_files() if file.exists()]
    instead = f"It is loaded in {str(dtype).removeprefix('torch.')} on {device}: choose another dtype, device or model."
    check_fits(checkpoint.name, weights_size(files, dtype), free_memory(device), instead)


def eight_bit(name: str) -> ModelError:
    """Return the error for an LM with 8-bit weights of bitsandbytes."""
    return ModelError(
        f"Model {name!r} has 8-bit weights of bitsandbytes, whose outputs depend on the other tokens of a pass, and so on the "
        "other texts of a batch. Use 4-bit weights or another quantisation."
    )


def load(
    name: str,
    kind: Kind,
    *,
    device: str,
    dtype: str,
    context: int | None = None,
    threads: int | None = None,
    trust_remote_code: bool = False,
    token: str | None = None,
    output: Output = None,
    form: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer: embedded, a folder, or a Hugging Face name.

    context: the requested one, which is checked before weights are read, as are output and form, the options of a reward.
    Raises UnknownNameError if the model does not exist, ModelError if it cannot be loaded, SettingError if the device does
    not exist or the model does not fit into its memory.
    """
    checkpoint, torch_device, torch_dtype = open_checkpoint(
        name,
        kind,
        device=device,
        dtype=dtype,
        context=context,
        trust_remote_code=trust_remote_code,
        token=token,
        output=output,
        form=form,
    )
    tokenizer = checkpoint.tokenizer()
    checkpoint.fetch()
    check_memory(checkpoint, torch_dtype, torch_device)
    model = worker_on(torch_device, threads).call(lambda: _load(checkpoint, torch_device, torch_dtype))
    return model, tokenizer


def _load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    name, config = checkpoint.name, checkpoint.config
    quantized = getattr(config, "quantization_config", None) is not None
    direct = quantized or (device.type != "cpu" and importlib.util.find_spec("accelerate") is not None)
    try:
        with quiet():
            adapter = adapter_shapes(checkpoint)
            labels = [shape[0] for key, shape in adapter.items() if _is_head(key) and key.endswith(OUTPUT_LAYERS)]
            if labels:
                config.num_labels = labels[0]
            model, report = checkpoint.auto.from_pretrained(
                checkpoint.base.folder,
                config=config,
                dtype=dtype,
                device_map={"": device} if direct else None,
                trust_remote_code=checkpoint.trust,
                ignore_mismatched_sizes=True,  # reported below
                output_loading_info=True,
            )
            saved = {key.removeprefix("base_model.model.") for key in adapter}
            _check_report(checkpoint, model, {key: set(keys) for key, keys in report.items() if key != "error_msgs"}, saved)
            ready: Any = with_adapter(model, checkpoint, adapter.keys()).eval()
            return cast(PreTrainedModel, ready if direct else ready.to(device))
    except torch.OutOfMemoryError as error:
        raise SettingError(
            f"Model {name!r} does not fit into the memory of {device}. Choose a smaller model, another dtype or another "
            f"device. ({error})"
        ) from error
    except CardsError:
        raise
    except Exception as error:  # of transformers, a quantiser, PEFT or the model's own code
        raise ModelError(f"Model {name!r} cannot be loaded: {brief(error)}") from error


def _check_report(checkpoint: Checkpoint, model: PreTrainedModel, report: dict[str, set[Any]], saved: set[str]) -> None:
    """Raise ModelError if weights are missing, have other shapes, or would not be used although scores depend on them.

    saved: names of weights that the adapter brings.
    """
    name, loaded = checkpoint.name, type(model).__name__
    if mismatched := sorted(report.get("mismatched_keys", ())):
        key, found, expected = mismatched[0]
        raise ModelError(
            f"Model {name!r} does not fit its configuration: {key} has shape {tuple(found)} instead of {tuple(expected)}."
        )
    if missing := sorted(report["missing_keys"] - saved):
        if checkpoint.kind == "rm" and any(map(_is_head, missing)):
            raise ModelError(f"Model {name!r} {NO_HEAD}")
        raise ModelError(f"Model {name!r} lacks weights ({', '.join(missing[:3])}). Is it a model for {loaded}?")
    if checkpoint.kind == "rm" and loaded not in (model.config.architectures or ()) and checkpoint.adapter is None:
        known = (f"{model.base_model_prefix}.", *LEGACY)
        unused = sorted(key for key in report["unexpected_keys"] if not any(part in key for part in known))
        if unused:
            raise ModelError(
                f"Model {name!r} has weights that {loaded} does not use ({', '.join(unused[:3])}), so its scores would be "
                "wrong. If it comes with its own Python code, allow it with trust_remote_code (--trust-remote-code)."
            )


def _is_head(key: str) -> bool:
    return key.removeprefix("base_model.model.").startswith(("score", "classifier", "classification_head"))


def _unpack(model: PreTrainedModel) -> None:
    """Run the model once, because some packages unpack quantised weights then, which inference mode would spoil."""
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # it warns at each pass
    with quiet(), torch.no_grad(), suppress(Exception):  # a model that cannot run is refused later, with the reason
        model(input_ids=torch.arange(4, device=model.device).unsqueeze(0))


def check_model(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model that a user passes, without the wrapper of PEFT. Raises ModelError unless it is on one device."""
    inner = without_wrapper(model)
    if getattr(inner.config, "quantization_config", None) is not None:
        _unpack(inner)
    devices = sorted({str(tensor.device) for tensor in (*inner.parameters(), *inner.buffers())})
    if len(devices) > 1 or devices == ["meta"]:
        raise ModelError(
            f"{type(inner).__name__} is on several devices ({', '.join(devices)}). Load it onto one: device_map={{'': DEVICE}}."
        )
    return inner
