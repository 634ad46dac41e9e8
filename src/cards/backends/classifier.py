"""Sequence classifiers as rewards: the part that is common to all back ends."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from cards.backends.forms import ResponseEncoder, with_form
from cards.engines.text import check_ids, reason
from cards.errors import CardsError, PromptError, RewardError, SettingError, UnknownNameError
from cards.events import Prompt, Response
from cards.fingerprint import fingerprint
from cards.rewards.base import Reward, excerpt
from cards.tokenizer import PairTokenizer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Output = int | str | Sequence[float] | None


class Classifier(Reward):
    """A reward from a sequence classifier: its only output, a chosen one (index or label), or a weighted sum of all.

    The RM reads messages in its own chat template if it has one, otherwise as the LM's token ids if both share a vocabulary.
    `form` is another form: "pair", "plain", or a chat template (Jinja, or a .jinja file). It reads at most `context` tokens.
    """

    def __init__(
        self,
        tokenizer: PairTokenizer,
        labels: Mapping[int, str],
        *,
        output: Output,
        form: str | None,
        target: float | None,
        context: int,
        vocab_size: int | None,
        name: str,
    ) -> None:
        self.tokenizer, self.name, self.target = with_form(tokenizer, form), name, target
        self.encoder = ResponseEncoder(self.tokenizer, form, name)
        self.weights = output_weights(labels, output, name)
        self.context = self.limit = context
        self.vocabulary, self.vocab_size = fingerprint(tokenizer), vocab_size

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

    def combine(self, outputs: Any) -> list[float]:
        """Reduce classifier outputs [rows, labels] to one reward per row."""
        return cast("list[float]", (np.asarray(outputs, np.float64) @ self.weights).tolist())


class SequenceClassifier(Classifier):
    """A reward from a sequence classifier of transformers, which has at least the configuration of the model."""

    tokenizer: PreTrainedTokenizerBase

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
        from cards.backends.configuration import context_length, vocab_size

        self.model = model.train(False)
        super().__init__(
            tokenizer,
            labels_of(model.config),
            output=output,
            form=form,
            target=target if target is not None else getattr(model.config, "cards_target", None),
            context=context_length(model, context),
            vocab_size=vocab_size(model),
            name=name or model.name_or_path or type(model).__name__,
        )

    def combine(self, outputs: Tensor) -> list[float]:
        return super().combine(outputs.double().numpy(force=True))


def labels_of(config: PreTrainedConfig) -> dict[int, str]:
    """Return the names of the outputs of a model with this configuration."""
    labels = cast("dict[int, str]", config.id2label or {})
    return {i: labels.get(i, "") for i in range(cast(int, config.num_labels))}


def output_weights(labels: Mapping[int, str], output: Output, name: str) -> NDArray[np.float64]:
    """Return the weights [labels] that combine the outputs into one reward.

    Raises SettingError or UnknownNameError if `output` does not match the outputs of the model.
    """
    count = len(labels)
    listing = ", ".join(f"{i} ({labels[i]})" for i in range(count))
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
        return np.array([i == output for i in range(count)], np.float64)
    if len(output) != count:
        raise SettingError(f"output must have {count} weights for {name!r}, got {len(output)}. Outputs: {listing}.")
    return np.array(output, np.float64)
