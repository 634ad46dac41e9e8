"""The check of a model for vLLM, without its weights and before vLLM's processes start, which takes long."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from cards.backends.checkpoint import Checkpoint
from cards.backends.classifier import Output, labels_of, output_weights
from cards.backends.configuration import DTYPES, context_length
from cards.backends.files import Kind, ModelFolder
from cards.backends.forms import form_template
from cards.backends.vllm.heads import check_head, check_options
from cards.errors import UnknownNameError, check


def prepare(
    name: str,
    kind: Kind,
    *,
    device: str = "auto",
    dtype: str = "auto",
    slots: int = 32,
    context: int | None = None,
    token: str | None = None,
    found: ModelFolder | None = None,
    output: Output = None,
    form: str | None = None,
    target: float | None = None,
    **options: Any,
) -> tuple[Checkpoint, PreTrainedModel, int]:
    """Return the checkpoint of a model that vLLM can load, the model without weights, and its context.

    Options are those of the loaders; `found` is the place of the model, if it is known. Raises UnknownNameError,
    MissingExtraError, ModelError or SettingError.
    """
    check(slots >= 1, f"slots must be at least 1, got {slots}.")
    if dtype != "auto" and dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, [*DTYPES, "auto"])
    check(
        kind == "rm" or "speculative_config" not in options,
        "speculative_config is not supported, because vLLM may then skip the logits processor. Leave it out.",
    )
    trust = bool(options.get("trust_remote_code"))
    checkpoint = Checkpoint.open(name, kind, trust_remote_code=trust, token=token, found=found)
    checkpoint.check_weights()
    model = checkpoint.without_weights()
    length = context_length(model, context)
    if kind == "rm":
        check_options(options)
        output_weights(labels_of(model.config), output, name)
        form_template(form)
    from cards.backends.vllm.host import check_host, known_architectures  # imports vLLM, which takes seconds

    check_host(device, options)
    if kind == "rm":
        check_head(checkpoint, model, known_architectures())
    return checkpoint, model, length
