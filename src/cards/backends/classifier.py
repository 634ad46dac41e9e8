"""Hugging Face sequence classifiers as rewards: the part that is common to all back ends."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cards.backends.configuration import context_length, vocab_size
from cards.backends.forms import ResponseEncoder, with_form
from cards.engines.text import check_ids, reason
from cards.errors import CardsError, PromptError, RewardError, SettingError, UnknownNameError
from cards.events import Prompt, Response
from cards.fingerprint import fingerprint
from cards.rewards.base import Reward, excerpt

Output = int | str | Sequence[float] | None


class SequenceClassifier(Reward):
    """A reward from a sequence classifier: its only output, a chosen one (index or label), or a weighted sum of all.

    The RM reads messages in its own chat template if it has one, otherwise as the LM's token ids if both share a vocabulary.
    `form` is another form: "pair", "plain", or a chat template (Jinja, or a .jinja file).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        output: Output = None,
        form: str | None = None,
        target: float | None = None,
        context: int | None = None,
        name: str | None = None,
    ) -> None:
        self.model, self.tokenizer = model.train(False), with_form(tokenizer, form)
        self.name = name or model.name_or_path or type(model).__name__
        self.encoder = ResponseEncoder(self.tokenizer, form, self.name)
        self.target = target if target is not None else getattr(model.config, "cards_target", None)
        self.weights = output_weights(model, output, self.name)
        self.context = self.limit = context_length(model, context)
        self.vocabulary, self.vocab_size = fingerprint(tokenizer), vocab_size(model)

    @abstractmethod
    async def read(self, rows: Sequence[list[int]]) -> list[float]:
        """Score rows of token ids."""

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        try:
            return await self.read([self._row(prompt, response) for response in responses])
        except CardsError:
            raise
        except Exception as error:  # of a template, a tokenizer or a model, on this text
            raise RewardError(f"Reward {self.name!r} cannot read the prompt {excerpt(prompt.text)}: {reason(error)}") from error

    def _row(self, prompt: Prompt, response: Response) -> list[int]:
        """Return `tokens`. Raises RewardError if the RM cannot read them."""
        row = self.tokens(prompt, response)
        if len(row) > self.limit:
            raise RewardError(
                f"Reward {self.name!r} reads at most {self.limit} tokens, got {len(row)} for the prompt and the first "
                f"{len(response.token_ids)} tokens of the response. Lower max_tokens or shorten the prompt."
            )
        try:
            check_ids(row, self.name, self.vocab_size)
        except PromptError as error:
            raise RewardError(str(error)) from error
        return row

    def tokens(self, prompt: Prompt, response: Response) -> list[int]:
        """Return the RM's token ids of prompt + response."""
        return self.encoder.encode(prompt, response, prompt.vocabulary == self.vocabulary)

    def combine(self, outputs: Tensor) -> list[float]:
        """Reduce classifier outputs [rows, labels] to one reward per row."""
        return cast("list[float]", (outputs.double() @ self.weights.to(outputs.device)).tolist())


def output_weights(model: PreTrainedModel, output: Output, name: str) -> Tensor:
    """Return the weights [labels] that combine the outputs into one reward.

    Raises SettingError or UnknownNameError if `output` does not match the outputs of the model.
    """
    labels = cast("dict[int, str]", model.config.id2label or {})
    count = cast(int, model.config.num_labels)
    listing = ", ".join(f"{i} ({labels.get(i, '')})" for i in range(count))
    if output is None:
        if count != 1:
            raise SettingError(
                f"Reward {name!r} has {count} outputs: {listing}. Choose one (output=...) or pass {count} weights."
            )
        output = 0
    if isinstance(output, str):
        by_label = {label: i for i, label in labels.items()}
        if output not in by_label:
            raise UnknownNameError("reward output", output, by_label)
        output = by_label[output]
    if isinstance(output, int):
        if not 0 <= output < count:
            raise SettingError(f"output must be between 0 and {count - 1} for {name!r}, got {output}. Outputs: {listing}.")
        return torch.nn.functional.one_hot(torch.tensor(output), count).double()
    if len(output) != count:
        raise SettingError(f"output must have {count} weights for {name!r}, got {len(output)}. Outputs: {listing}.")
    return torch.tensor(output, dtype=torch.float64)
