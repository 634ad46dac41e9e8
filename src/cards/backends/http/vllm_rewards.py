"""Reward models on a vLLM server, scored with /classify or /pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cards.backends.classifier import Classifier, Output
from cards.backends.forms import TypedRow
from cards.backends.http.client import Client
from cards.backends.http.rewards import post_all, unexpected_reply
from cards.backends.http.served import ModelFiles, model_card
from cards.errors import ModelError, RewardError
from cards.usage import current_account


class VLLMHTTPReward(Classifier):
    """A sequence classifier on a vLLM server, at /classify or /pooling (`path`)."""

    def __init__(
        self,
        client: Client,
        path: str,
        served: str,
        files: ModelFiles,
        *,
        output: Output = None,
        form: str | None = None,
        target: float | None = None,
        context: int,
    ) -> None:
        super().__init__(
            files.tokenizer,  # type: ignore[arg-type]  # those of files and of transformers have pairs
            files.labels,
            output=output,
            form=form,
            target=files.config.get("cards_target") if target is None else target,
            context=context,
            vocab_size=files.config.get("vocab_size"),
            name=client.address + path,
        )
        self.client, self.path, self.served, self.parts = client, path, served, (client,)
        self.typed = (files.config.get("type_vocab_size") or 0) > 1

    @classmethod
    def connect(cls, client: Client, kind: str, files: str | None, *, context: int | None, **options: Any) -> VLLMHTTPReward:
        """Return the reward at /classify or /pooling (`kind`).

        files: folder or Hugging Face name of the model's configuration and tokenizer; default: what the server reports.
        Raises ModelError if they are not found.
        """
        card = client.run(model_card(client, "/v1/models", ""))
        client.run(client.post(f"/{kind}", {"model": card["id"], "input": [[0]]}))  # raises if the server gives no scores
        found = ModelFiles.find(None, [files] if files else [card["root"], card["id"]], "rm")
        if found is None or not found.config:
            raise ModelError(
                f"The configuration and tokenizer of the model at {client.address} were not found, got "
                f"{files or card['root']!r}. Give the folder or Hugging Face name of the model (tokenizer=...)."
            )
        length = min(card["max_model_len"], context or card["max_model_len"])
        return cls(client, f"/{kind}", card["id"], found, context=length, **options)

    async def read(self, rows: Sequence[list[int]]) -> list[float]:
        if self.typed and any(isinstance(row, TypedRow) for row in rows):
            raise RewardError(f"Reward {self.name!r} needs token types of text pairs, which vLLM does not get.")
        body = {"model": self.served, "input": list(rows), "use_activation": False}
        [reply] = await post_all(self.client, self.path, [body])
        column = "probs" if self.path == "/classify" else "data"
        try:
            values = [row[column] for row in sorted(reply["data"], key=lambda row: int(row["index"]))]
            rewards = self.combine([row[-1] if isinstance(row[0], list) else row for row in values])
            read = int(reply["usage"]["prompt_tokens"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise unexpected_reply(self.client.address, reply) from error
        current_account().add(prefill_tokens=read)
        return rewards
