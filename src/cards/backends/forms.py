"""The form in which a reward model reads a prompt and a response: a chat template, a text pair, or plain text."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from cards.errors import RewardError, SettingError
from cards.events import Message, Prompt, Response
from cards.prompts import read_template
from cards.tokenizer import PairTokenizer

MARK = "\ue000"  # a private-use character that stands for the end of the response while a template is rendered


class TypedRow(list[int]):
    """Token ids of a text pair, with the type (0 or 1) of each token."""

    def __init__(self, token_ids: Sequence[int], types: Sequence[int]) -> None:
        super().__init__(token_ids)
        self.types = list(types)


def with_form(tokenizer: PairTokenizer, form: str | None) -> PairTokenizer:
    """Return the tokenizer, with the chat template `form` unless `form` is pair, plain or None. Raises SettingError."""
    template = form_template(form)
    if template is not None:
        tokenizer = copy.copy(tokenizer)
        tokenizer.chat_template = template
    return tokenizer


def form_template(form: str | None) -> str | None:
    """Return the chat template `form` (Jinja, or a .jinja file), or None for pair, plain and None.

    Raises SettingError for any other form.
    """
    if form is None or form in ("pair", "plain"):
        return None
    template = read_template(form)
    if "{{" not in template:
        raise SettingError(f"form must be 'pair', 'plain', a chat template or a .jinja file, got {form!r}.")
    return template


class ResponseEncoder:
    """The token ids of prompt + response in the form that a reward model reads.

    A response that ended by itself (`finish_reason` "stop") is followed by what the chat template writes after a turn. Any
    other response, such as one cut off by max_tokens, is left open. `form` None means: the model's own chat template, the LM's
    token ids if both models share a vocabulary, or a text pair if the tokenizer separates pairs.
    """

    def __init__(self, tokenizer: PairTokenizer, form: str | None, name: str) -> None:
        self.tokenizer, self.form, self.name = tokenizer, form, name

    def encode(self, prompt: Prompt, response: Response, shared: bool) -> list[int]:
        """Return the token ids. `shared` says whether the LM's token ids are ids of this tokenizer."""
        template = None if self.form in ("pair", "plain") else cast("str | None", self.tokenizer.chat_template)
        if prompt.messages is not None and template is not None:
            if template != prompt.template:
                return self._ids(self._rendered(prompt.messages, _whole(prompt, response)))
            ending = self._rendered(prompt.messages, Response(MARK, (0,), "stop")).rpartition(MARK)[2]
            ending = ending if response.finish_reason == "stop" else ""
            if shared:
                return [*prompt.token_ids, *self._written(response, end=False), *self._ids(ending)]
            return self._ids(prompt.text + response.text + ending)
        if self.form is None and shared:
            return [*prompt.token_ids, *self._written(response, end=True)]
        if self.form == "pair" or (self.form is None and prompt.messages is not None and separates_pairs(self.tokenizer)):
            return self._pair(question(prompt), _whole(prompt, response).text.lstrip())
        if prompt.messages is None:
            return cast("list[int]", self.tokenizer(prompt.text + response.text)["input_ids"])
        if self.form == "plain":
            return cast(
                "list[int]", self.tokenizer(f"{question(prompt)}\n\n{_whole(prompt, response).text.lstrip()}")["input_ids"]
            )
        raise RewardError(
            f"Reward {self.name!r} has no chat template, so the form in which it reads messages is unknown. Set form to 'pair' "
            "(the texts of prompt and response as a pair), 'plain' (separated by an empty line) or a chat template."
        )

    def _rendered(self, messages: Sequence[Message], response: Response) -> str:
        """Return prompt and response in the chat template. Only a response that ended by itself has the end of its turn."""
        turns: list[Any] = list(messages)
        empty = not (response.token_ids or response.text)
        if not empty:
            turns.append({"role": "assistant", "content": response.text.lstrip() + MARK})
        text = cast(str, self.tokenizer.apply_chat_template(turns, tokenize=False))
        if empty:
            return text
        if MARK not in text:
            raise RewardError(f"The chat template of reward {self.name!r} leaves the response out.")
        before, _, after = text.rpartition(MARK)
        return before + after if response.finish_reason == "stop" else before

    def _written(self, response: Response, end: bool) -> Sequence[int]:
        """Return the LM's token ids of the response, with its end token if `end`. A stop string and its tokens are left out."""
        ids = response.token_ids
        if response.finish_reason != "stop" or not ids:
            return ids
        if self._is_end(ids[-1], response.text):
            return ids if end else ids[:-1]
        return ids if self.tokenizer.decode(list(ids)) == response.text else self._ids(response.text)

    def _is_end(self, token: int, text: str) -> bool:
        added = self.tokenizer.added_tokens_decoder.get(token)
        special = token in self.tokenizer.all_special_ids or (added is not None and added.special)
        return special and not text.endswith(cast(str, self.tokenizer.convert_ids_to_tokens(token)))

    def _ids(self, text: str) -> list[int]:
        return cast("list[int]", self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _pair(self, first: str, second: str) -> list[int]:
        encoding = self.tokenizer(first, second)
        ids = cast("list[int]", encoding["input_ids"])
        return TypedRow(ids, cast("list[int]", encoding["token_type_ids"])) if "token_type_ids" in encoding else ids


def _whole(prompt: Prompt, response: Response) -> Response:
    """Return the response with the beginning of the assistant's message that it continues."""
    return replace(response, text=prompt.begun + response.text) if prompt.begun else response


def question(prompt: Prompt) -> str:
    """Return the contents of the messages, separated by empty lines, or the text of a raw prompt."""
    return prompt.text if prompt.messages is None else "\n\n".join(message["content"].strip() for message in prompt.messages)


def separates_pairs(tokenizer: PairTokenizer) -> bool:
    """Return whether the tokenizer writes its separator between the texts of a pair, as those of BERT and DeBERTa do."""
    first, pair = (cast("list[int]", tokenizer(*texts)["input_ids"]) for texts in (("a",), ("a", "b")))
    separator = getattr(tokenizer, "sep_token_id", None)
    return separator is not None and pair.count(separator) > max(first.count(separator), 1)
