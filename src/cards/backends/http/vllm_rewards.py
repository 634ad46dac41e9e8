"""Reward models in a vLLM server: the scores of ClassifierReward, by /classify or /pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from cards.backends.classifier import SequenceClassifier
from cards.backends.configuration import flops_per_token, skeleton
from cards.backends.files import locate
from cards.backends.http.client import Client
from cards.backends.http.rewards import asked
from cards.backends.http.served import card_of
from cards.errors import ModelError, RewardError, UnknownNameError
from cards.usage import current_account


class VLLMHTTPReward(SequenceClassifier):
    """A sequence classifier in a vLLM server. `model` has the configuration, not the weights."""

    def __init__(
        self, client: Client, path: str, served: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **options: Any
    ) -> None:
        super().__init__(model, tokenizer, name=client.address + path, **options)
        self.client, self.path, self.served, self.flops = client, path, served, flops_per_token(model)

    @classmethod
    def connect(cls, client: Client, kind: str, place: str | None, *, context: int | None, **options: Any) -> VLLMHTTPReward:
        """The model behind /classify or /pooling, whose files are at `place`, or where the server says.

        Raises ModelError if they are not.
        """
        card = client.at_once(card_of(client, "/v1/models", ""))
        client.at_once(client.post(f"/{kind}", {"model": card["id"], "input": [[0]]}))  # that there are scores at all
        model, tokenizer = _found([place] if place else [card["root"], card["id"]], client.address)
        most = min(card["max_model_len"], context or card["max_model_len"])
        return cls(client, f"/{kind}", card["id"], model, tokenizer, context=most, **options)

    async def read(self, rows: Sequence[list[int]]) -> list[float]:
        body = {"model": self.served, "input": list(rows), "use_activation": False}
        [answer] = await asked(self.client, self.path, [body])
        column = "probs" if self.path == "/classify" else "data"
        try:
            found = [row[column] for row in sorted(answer["data"], key=lambda row: int(row["index"]))]
            outputs = torch.tensor([row[-1] if isinstance(row[0], list) else row for row in found])
            read = int(answer["usage"]["prompt_tokens"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise RewardError(f"The reward at {self.client.address} answered in another form: {str(answer)[:200]}") from error
        current_account().add(prefill_tokens=read, flops=self.flops * read)
        return self.combine(outputs)

    async def aclose(self) -> None:
        await self.client.aclose()


def _found(places: Sequence[str], address: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    for place in places:
        try:
            return skeleton(AutoModelForSequenceClassification, locate(place, "rm"))
        except (UnknownNameError, ModelError):
            continue
    raise ModelError(
        f"The configuration and tokenizer of the model at {address} are not to be found here, neither at {places[0]!r} nor by "
        "name: give its folder or Hugging Face name (tokenizer=...)."
    )
