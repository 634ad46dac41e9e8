"""Reward models in GGUF files: decoders with a linear head, with prefix reuse, and encoders."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from typing import Any

from cards.backends.classifier import Classifier, Output
from cards.backends.forms import question
from cards.backends.llamacpp.engine import worker_on
from cards.backends.llamacpp.heads import Head, usable_head
from cards.backends.llamacpp.model import GGUFModel
from cards.backends.llamacpp.plan import Plan
from cards.backends.llamacpp.scores import EncoderScorer, ScoreCache
from cards.engines.scoring import SlotScorer
from cards.engines.slots import Slots
from cards.errors import ModelError
from cards.events import Prompt, Response

log = logging.getLogger("cards")


class LlamaReward(Classifier):
    """A classifier of a GGUF file. Decoders run in the sequences of a context and reuse prefixes; encoders read full texts.

    A reranker that is an LM with the outputs "yes" and "no" gives the logarithm of their odds, unless `output` is set. It reads
    the prompt as the query and the response as the document, in the template of its file, unless `form` is set.
    """

    libraries = frozenset({"llama_cpp"})

    @classmethod
    def load(
        cls,
        name: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        output: Output = None,
        form: str | None = None,
        target: float | None = None,
        slots: int | None = None,
        context: int | None = None,
        threads: int | None = None,
        **options: Any,
    ) -> LlamaReward:
        """Load a GGUF file. Options are those of the class and of `LlamaEngine.load`.

        Raises MissingExtraError, UnknownNameError, SettingError, or ModelError for a file without a head.
        """
        plan = Plan.of(name, device=device, dtype=dtype, slots=slots, context=context, threads=threads, **options)
        head = usable_head(plan.header, name, output, form)

        def load() -> LlamaReward:
            model = load_model(plan, head)
            try:
                return cls(model, head, plan, output=output, form=form, target=target)
            except BaseException:
                model.free()
                raise

        return worker_on(plan.device, plan.threads).call(load)

    def __init__(
        self, model: GGUFModel, head: Head, plan: Plan, *, output: Output, form: str | None, target: float | None
    ) -> None:
        rows, length = plan.cache_size()
        goal = model.metadata.get("cards.target")
        super().__init__(
            model.tokenizer,
            head.labels,
            output=head.output(output),
            form=form,
            target=float(goal) if target is None and goal is not None else target,
            context=length,
            vocab_size=len(model.tokenizer),
            name=model.name,
        )
        self.template = head.template if form is None else None
        if head.weight is None:
            encoder = EncoderScorer(model, head, rows, length, plan.device, plan.options, self.combine)
            self.scorer: SlotScorer | EncoderScorer = encoder
            cache = encoder.cache
        else:
            cache = ScoreCache(model, head, rows, length, plan.device, plan.options)
            self.scorer = SlotScorer(Slots(cache), self.combine, cache.batch_size)
        self.parts = (self.scorer,)
        weakref.finalize(self, cache.free).atexit = False
        log.info("%s on %s: %d slots of %d tokens", model.name, plan.device, rows, length)

    async def read(self, rows: Sequence[list[int]]) -> list[float]:
        return await self.scorer.score(rows)

    def tokens(self, prompt: Prompt, response: Response) -> list[int]:
        if self.template is None:  # an encoder with the vocabulary of the LM needs its own special tokens
            shared = isinstance(self.scorer, SlotScorer) and prompt.vocabulary == self.vocabulary
            return self.encoder.encode(prompt, response, shared)
        before, _, after = (part.replace("{query}", question(prompt)) for part in self.template.partition("{document}"))
        return list(self.tokenizer(before + response.text.lstrip() + after)["input_ids"])


def load_model(plan: Plan, head: Head) -> GGUFModel:
    """Load a file, and explain why llama.cpp refuses a head that its architecture does not have."""
    try:
        return GGUFModel(plan.name, plan.header, plan.options)
    except ModelError as error:
        if head.weight is not None and "wrong number of tensors" in str(error):
            raise ModelError(
                f"{plan.name!r} has a classification head that llama.cpp does not load for its architecture. Store it as "
                "metadata instead (docs/llamacpp.md)."
            ) from error
        raise
