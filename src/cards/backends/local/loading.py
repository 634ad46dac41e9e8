"""Loading of transformers models onto a device of this machine."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cards.backends.configuration import resolve_dtype
from cards.backends.files import check_weights, load_tokenizer, locate, unknown_model
from cards.backends.local.memory import check_model_fits, stored_dtype
from cards.engines.worker import DeviceWorker
from cards.errors import ModelError, SettingError, check
from cards.threads import Threads, usable_threads


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


def load(
    auto: Any, name: str, embedded: str, device: str, dtype: str, threads: int | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer from a folder, from Hugging Face, or embedded (`tiny` is in folder `embedded`).

    Raises UnknownNameError if the model does not exist, ModelError if weights are missing, SettingError if the device does
    not exist or the model does not fit into its memory.
    """
    torch_device = resolve_device(device)
    return worker_on(torch_device, threads).call(lambda: _load(auto, name, embedded, torch_device, dtype))


def _load(
    auto: Any, name: str, embedded: str, device: torch.device, dtype: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    source = locate(name, embedded)
    check_weights(source, name)
    torch_dtype = resolve_dtype(dtype, device, stored_dtype(Path(source)))
    check_model_fits(name, Path(source), torch_dtype, device)
    try:
        model, report = auto.from_pretrained(source, dtype=torch_dtype, output_loading_info=True)
        tokenizer = load_tokenizer(source)
    except OSError as error:
        if Path(source).is_dir():  # the folder exists, so its name is no typing error
            raise ModelError(f"Model {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error
        raise unknown_model(name) from error
    except ValueError as error:
        raise ModelError(f"Model {name!r} cannot be loaded: {error}") from error
    if missing := sorted(report["missing_keys"]):
        if any(key.startswith(("score", "classifier")) for key in missing):
            raise ModelError(f"Model {name!r} has no trained score head. A reward model must be a trained sequence classifier.")
        kind = auto.__name__.removeprefix("AutoModelFor")
        raise ModelError(f"Model {name!r} lacks weights ({', '.join(missing[:3])}). Is it a model for {kind}?")
    try:
        return model.to(device).eval(), tokenizer
    except torch.OutOfMemoryError as error:
        raise SettingError(
            f"Model {name!r} does not fit into the memory of {device}. Choose a smaller model, another dtype or another "
            f"device. ({error})"
        ) from error
