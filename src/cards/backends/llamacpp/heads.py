"""Classification heads of GGUF files: where they are, and which of them llama.cpp computes as their authors do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cards.backends.classifier import Output, output_weights
from cards.backends.forms import form_template
from cards.backends.llamacpp.header import Header
from cards.errors import ModelError

WEIGHT, BIAS = "cards.score.weight", "cards.score.bias"  # metadata: the head of a decoder, one row for each output
TENSOR, LAYER = "cls.output", "cls"  # tensors: the last layer of a head, and the one before
ENCODERS = ("bert",)  # llama.cpp computes their heads
OTHER_ENCODERS = (
    "modern-bert",
    "neo-bert",
    "jina-bert-v2",
    "jina-bert-v3",
    "nomic-bert",
    "nomic-bert-moe",
    "t5encoder",
    "gemma-embedding",
)
RERANKER = ("yes", "no")  # labels of rerankers that are LMs: their head has two rows of the LM's
INSTEAD = (
    "Give a language model as implicit:TUNED,UNTUNED, self-evaluation:NAME or value:NAME, or convert the reward model with its "
    "head (docs/llamacpp.md)."
)


@dataclass(frozen=True)
class Head:
    """The last linear layer of a classifier: weight [labels, width] and bias [labels].

    Without a weight, llama.cpp computes the head of an encoder. `template` has {query} and {document} in a reranker.
    """

    labels: dict[int, str]
    weight: NDArray[np.float32] | None
    bias: NDArray[np.float32]
    template: str | None = None

    def __call__(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the outputs [rows, labels] for hidden states [rows, width], each row computed alone."""
        assert self.weight is not None
        outputs: NDArray[np.float32] = np.einsum("rw,lw->rl", hidden, self.weight) + self.bias
        return outputs

    def output(self, given: Output) -> Output:
        """Return the output to use: the given one. For a reranker, the default is the log-odds of "yes"."""
        return [1.0, -1.0] if given is None and tuple(self.labels.values()) == RERANKER else given


def usable_head(header: Header, name: str, output: Output, form: str | None) -> Head:
    """Return the head of a file, if it has the output and can be used with the form of a reward.

    Raises ModelError, SettingError or UnknownNameError.
    """
    head = find_head(header, name)
    output_weights(head.labels, head.output(output), name)
    form_template(form)
    if head.weight is None and header.metadata.get("tokenizer.ggml.token_type_count", 1) > 1 and form in (None, "pair"):
        raise ModelError(
            f"Reward {name!r} needs the token types of text pairs, and llama.cpp has none. Run it with transformers, or set "
            "form to 'plain' or a template if it was trained on single texts."
        )
    return head


def find_head(header: Header, name: str) -> Head:
    """Return the head of a file. Raises ModelError if it has none, or one that cannot be computed exactly."""
    architecture, metadata = header.architecture, header.metadata
    if architecture in ENCODERS:
        check_encoder(header, name)
        shape = header.tensors[f"{TENSOR}.weight"].shape
        count = shape[1] if len(shape) > 1 else 1
        return Head(names_of(header, count), None, np.zeros(count, np.float32))
    if architecture in OTHER_ENCODERS or header.own("attention.causal", True) is False:
        raise ModelError(
            f"Reward {name!r} is an encoder of the architecture {architecture!r}, whose head llama.cpp is not known to compute "
            "exactly. Run the original model with transformers."
        )
    if WEIGHT in metadata:
        weight, bias = np.asarray(metadata[WEIGHT], np.float32), metadata.get(BIAS)
    elif f"{TENSOR}.weight" in header.tensors:
        weight = header.tensor(f"{TENSOR}.weight")
        bias = header.tensor(f"{TENSOR}.bias") if f"{TENSOR}.bias" in header.tensors else None
    else:
        raise ModelError(f"{name!r} has no classification head, so it is not a reward model. {INSTEAD}")
    width = int(header.own("embedding_length", 0))
    if not width or weight.size % width or not np.isfinite(weight).all():
        raise ModelError(f"The head of {name!r} must have rows of {width} finite weights, got {weight.size} weights.")
    weight = weight.reshape(-1, width)
    bias = np.zeros(len(weight), np.float32) if bias is None else np.asarray(bias, np.float32)
    if bias.shape != (len(weight),):
        raise ModelError(f"The head of {name!r} has {len(weight)} outputs, but {bias.size} biases.")
    return Head(names_of(header, len(weight)), weight, bias, metadata.get("tokenizer.chat_template.rerank"))


def is_classifier(header: Header) -> bool:
    """Return whether a file gives scores or embeddings, and no text."""
    pools = bool(header.own("pooling_type", 0))
    return WEIGHT in header.metadata or pools or header.architecture in ENCODERS + OTHER_ENCODERS


def names_of(header: Header, count: int) -> dict[int, str]:
    """Return the names of the outputs, empty if the file has none."""
    names = header.own("classifier.output_labels") or []
    return {i: names[i] if len(names) == count else "" for i in range(count)}


def check_encoder(header: Header, name: str) -> None:
    """Raise ModelError if the head of an encoder is missing, or if llama.cpp computes it in another way than its authors."""
    has = {part: f"{part}.weight" in header.tensors for part in (LAYER, TENSOR, "token_types")}
    problem = ""
    if not has[TENSOR]:
        problem = "it has no classification head, so it gives embeddings and no scores"
    elif not has[LAYER]:
        problem = "the conversion has left out the layer before its classifier"
    elif not has["token_types"]:
        problem = "llama.cpp computes the head of DistilBERT with another activation"
    if problem:
        raise ModelError(f"{name!r} cannot be used as a reward: {problem}. Run the original model with transformers.")
