"""Guard models and LLM judges: the log-odds of their verdict on a response."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations, takewhile
from typing import Any, ClassVar

from cards.engines.base import Engine
from cards.engines.text import check_fits, encode, with_template
from cards.errors import MismatchError, PromptError, SettingError, check
from cards.events import Message, Prompt, Response
from cards.prompts import Chat, read_template
from cards.rewards.engines import EngineReward, encode_question
from cards.rewards.guards import Guard, guard
from cards.rewards.self_evaluation import conversation
from cards.tokenizer import Tokenizer

Texts = str | tuple[str, ...] | Sequence[str]  # as a type, the tuple lets names of rewards repeat the option
CONTENT = ("conversation", "prompt", "response", "policy")  # placeholders of a question


class GuardReward(EngineReward):
    """The log-odds of a good verdict, log P(good) - log P(bad), that an LM gives on prompt and response.

    P(v) is the probability that the LM's reply begins with `lead` and then the verdict v. `good` and `bad` are one text or
    several, whose probabilities are added. Verdicts of several tokens are read exactly. The LM reads one of these:

    - its own chat template with the response as the last message: guard models. `preset` gives all else (see
      `cards.rewards.guards`), and None chooses it by the model's name.
    - `template`, a chat template (Jinja, or a .jinja file) used in the same way.
    - `question`, a text with {response} or {conversation}, and optionally {prompt} and {policy}, as a user message.

    `policy` is the text of the policy, where the form has a place for one. `variables` are further arguments of the template
    (a mapping, or JSON). Incomplete responses are judged as they are, and the bare prompt as an empty response. System
    messages become part of the first user message, because guards know no others.
    Raises SettingError, UnknownNameError or MismatchError.
    """

    kind: ClassVar[str] = "guard"
    scale = "logit"

    def __init__(
        self,
        model: str | Engine,
        *,
        preset: str | None = None,
        template: str | None = None,
        question: str | None = None,
        good: Texts | None = None,
        bad: Texts | None = None,
        lead: str | None = None,
        policy: str | None = None,
        variables: Mapping[str, Any] | str | None = None,
        target: float | None = 0.0,
        **options: Any,
    ) -> None:
        given = [name for name, value in (("preset", preset), ("template", template), ("question", question)) if value]
        check(len(given) <= 1, f"Give only one of preset, template and question, got {' and '.join(given)}.")
        if template or question:
            check(good is not None and bad is not None, f"A {given[0]} needs the texts of its verdicts: give good and bad.")
            known = Guard("", (), (), policy="policy" if template else "")
        else:
            known = guard(preset, model if isinstance(model, str) else model.name)
        self.variables = {**known.variables, **_read_variables(variables)}
        if question:
            _check_question(question, policy)
        elif policy is not None:
            check(bool(known.policy), "This guard has no place for a policy. Give variables: arguments of its chat template.")
            self.variables[known.policy] = policy
        elif known.policy and not template:
            check(known.policy in self.variables, "This guard needs a policy: the text of a guideline, as in its model card.")
        super().__init__(model, target=target, **options)
        self.context = None  # the guard reads more tokens than the prompt and the response
        self.question, self.policy, self.lead = question, policy or "", known.lead if lead is None else lead
        self.tokenizer: Tokenizer | None = None
        if template:
            self.tokenizer = with_template(self.model.tokenizer, read_template(template), self.model.name)
        self.good = self._verdicts(known.good if good is None else good)
        self.bad = self._verdicts(known.bad if bad is None else bad)
        for one, other in permutations((*self.good, *self.bad), 2):
            check(
                one != other[: len(one)],
                f"The verdicts must not begin with one another, got verdicts with the tokens {one} and {other} of "
                f"{self.model.name!r}.",
            )
        columns = zip(*self.good, *self.bad, strict=False)
        self.shared = tuple(column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns))
        self.single = all(len(ids) == len(self.shared) + 1 for ids in (*self.good, *self.bad))
        if not self.model.has.intersection({"logprobs", "logits"} if self.single else {"logprobs"}):
            raise MismatchError(f"Engine {self.model.name!r} does not provide log-probabilities, which a guard needs.")
        try:
            self._encode(Prompt("Hello"), Response("Hello"))
        except PromptError as error:
            raise SettingError(f"The guard {self.model.name!r} cannot read a conversation. {error}") from error

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        return await asyncio.gather(*(self._rate(prompt, response) for response in responses))

    async def _rate(self, prompt: Prompt, response: Response) -> float:
        import numpy as np

        encoded = self._encode(prompt, response)
        if self.single and "logits" in self.model.has:
            [logits] = await self.model.logits(encoded, Response(token_ids=self.shared))
            scores = [float(logits[ids[-1]]) for ids in (*self.good, *self.bad)]
        else:
            scores = await asyncio.gather(*(self._log_probability(encoded, ids) for ids in (*self.good, *self.bad)))
        good, bad = scores[: len(self.good)], scores[len(self.good) :]
        return float(np.logaddexp.reduce(good) - np.logaddexp.reduce(bad))

    async def _log_probability(self, prompt: Prompt, ids: tuple[int, ...]) -> float:
        """Return the log-probability of a verdict's tokens after those that all verdicts share."""
        return float((await self.model.logprobs(prompt, Response(token_ids=ids), len(ids) - len(self.shared))).sum())

    def _encode(self, prompt: Prompt, response: Response) -> Prompt:
        """Return what the guard reads before its reply. Raises PromptError."""
        written = prompt.begun + response.text
        if self.question is not None:
            values = {"conversation": conversation(prompt, response), "response": written.strip(), "policy": self.policy}
            values["prompt"] = conversation(replace(prompt, begun="", thought=Response()), None)
            text = re.sub(rf"\{{({'|'.join(CONTENT)})\}}", lambda match: values[match[1]], self.question)
            return encode_question(self.model, text)
        messages = prompt.messages or (Message(role="user", content=prompt.text),)
        turns = [*_without_system(messages), Message(role="assistant", content=written)]
        chat = Chat(turns, self.variables, answered=True)
        if self.tokenizer is None:
            return self.model.encode(chat)
        encoded = encode(self.tokenizer, chat)
        return check_fits(encoded, self.model.name, self.model.context, self.model.vocab_size)

    def _verdicts(self, texts: Texts) -> list[tuple[int, ...]]:
        """Return the token ids of `lead` and each verdict."""
        texts = (texts,) if isinstance(texts, str) else tuple(texts)
        check(bool(texts) and all(texts), f"good and bad must be nonempty texts, got {texts!r}.")
        found = [self.model.tokenize(self.lead + text) for text in texts]
        for text, ids in zip(texts, found, strict=True):
            written = self.model.tokenizer.decode(ids)
            check(
                "".join(written.split()) == "".join((self.lead + text).split()),  # tokenizers may add spaces
                f"The verdict {text!r} cannot be written in the tokens of {self.model.name!r}, which read {written!r}.",
            )
        return found


def _read_variables(variables: Mapping[str, Any] | str | None) -> dict[str, Any]:
    try:
        return dict((json.loads(variables) if isinstance(variables, str) else variables or {}).items())
    except (ValueError, AttributeError) as error:
        raise SettingError(f"variables must be a JSON object, got {variables!r} ({error}).") from error


def _check_question(question: str, policy: str | None) -> None:
    places = [name for name in CONTENT if f"{{{name}}}" in question]
    check("conversation" in places or "response" in places, "question must contain {response} or {conversation}.")
    check(
        ("policy" in places) == (policy is not None),
        f"question must contain {{policy}} if and only if there is a policy, got the policy {policy!r}.",
    )


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with the system message as the beginning of the first user message."""
    if messages[0]["role"] != "system" or len(messages) == 1:
        return list(messages)
    return [Message(role="user", content=f"{messages[0]['content']}\n\n{messages[1]['content']}"), *messages[2:]]
