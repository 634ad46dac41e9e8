"""Reward models on a vLLM server, scored with /classify or /pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cards.backends.checkpoint import Checkpoint
from cards.backends.classifier import SequenceClassifier
from cards.backends.configuration import flops_per_token
from cards.backends.http.client import Client
from cards.backends.http.rewards import post_all, unexpected_reply
from cards.backends.http.served import model_card
from cards.errors import ModelError, UnknownNameError
from cards.usage import current_account


class VLLMHTTPReward(SequenceClassifier):
    """A sequence classifier on a vLLM server. `model` has the configuration, but no weights."""

    def __init__(
        self, client: Client, path: str, served: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **options: Any
    ) -> None:
        super().__init__(model, tokenizer, name=client.address + path, **options)
        self.client, self.path, self.served, self.parts = client, path, served, (client,)
        self.flops = flops_per_token(model)

    @classmethod
    def connect(cls, client: Client, kind: str, files: str | None, *, context: int | None, **options: Any) -> VLLMHTTPReward:
        """Return the reward at /classify or /pooling (`kind`).

        files: folder or Hugging Face name of the model's configuration and tokenizer; default: what the server reports.
        Raises ModelError if they are not found.
        """
        card = client.run(model_card(client, "/v1/models", ""))
        client.run(client.post(f"/{kind}", {"model": card["id"], "input": [[0]]}))  # raises if the server gives no scores
        model, tokenizer = _load([files] if files else [card["root"], card["id"]], client.address)
        length = min(card["max_model_len"], context or card["max_model_len"])
        return cls(client, f"/{kind}", card["id"], model, tokenizer, context=length, **options)

    async def read(self, rows: Sequence[list[int]]) -> list[float]:
        body = {"model": self.served, "input": list(rows), "use_activation": False}
        [reply] = await post_all(self.client, self.path, [body])
        column = "probs" if self.path == "/classify" else "data"
        try:
            values = [row[column] for row in sorted(reply["data"], key=lambda row: int(row["index"]))]
            outputs = torch.tensor([row[-1] if isinstance(row[0], list) else row for row in values])
            read = int(reply["usage"]["prompt_tokens"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise unexpected_reply(self.client.address, reply) from error
        current_account().add(prefill_tokens=read, flops=self.flops * read)
        return self.combine(outputs)


def _load(names: Sequence[str], address: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    for name in names:
        try:
            checkpoint = Checkpoint.open(name, "rm")
            return checkpoint.without_weights(), checkpoint.tokenizer()
        except (UnknownNameError, ModelError):
            continue
    raise ModelError(
        f"The configuration and tokenizer of the model at {address} were not found, got {names[0]!r}. Give the folder or "
        "Hugging Face name of the model (tokenizer=...)."
    )
