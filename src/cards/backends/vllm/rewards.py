"""Reward models in vLLM, with vLLM's prefix cache."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cards.backends.classifier import Output, SequenceClassifier
from cards.backends.configuration import flops_per_token
from cards.backends.forms import TypedRow
from cards.backends.local.readers import REPEATED, probes
from cards.backends.vllm.check import prepare
from cards.backends.vllm.host import Host
from cards.errors import ModelError, RewardError
from cards.usage import current_account

NOISE = 32  # roundings, relative to the largest output, by which two runs of a text in half precision may differ


class VLLMReward(SequenceClassifier):
    """A sequence classifier in vLLM. `model` has the configuration, but no weights."""

    libraries = frozenset({"vllm"})

    def __init__(self, host: Host, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **options: Any) -> None:
        super().__init__(model, tokenizer, **options)
        self.host, self.parts, self.flops = host, (host,), flops_per_token(model)

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
        slots: int = 32,
        context: int | None = None,
        token: str | None = None,
        **options: Any,
    ) -> VLLMReward:
        """Load `tiny`, a folder, or a Hugging Face name. Options are those of vLLM's AsyncEngineArgs; token: see `load_engine`.

        Raises ModelError if the model has no trained score head, or if vLLM does not score as the model's own forward pass.
        """
        reading: dict[str, Any] = {"output": output, "form": form, "target": target}
        checkpoint, model, length = prepare(
            name, "rm", device=device, dtype=dtype, slots=slots, context=context, token=token, **reading, **options
        )
        tokenizer = checkpoint.tokenizer()
        options = {"gpu_memory_utilization": 0.4} | options
        checkpoint.fetch()
        host = Host(
            str(checkpoint.base.folder),
            name,
            device,
            dtype,
            max_num_seqs=slots,
            max_model_len=length,
            runner="pooling",
            **options,
        )
        reward = cls(host, model, tokenizer, context=context, name=f"vllm:{name}", **reading)
        try:
            reward.check_batches()
        except BaseException:
            host.close()
            raise
        return reward

    def check_batches(self) -> None:
        """Raise ModelError if vLLM scores a text together with others, partly from its cache, differently than alone."""
        texts = probes(self.model, self.tokenizer, self.limit, window=0)

        async def classify_twice() -> tuple[list[Any], list[Any]]:
            alone = [await self.host.classify(text) for text in texts]
            return alone, await asyncio.gather(*map(self.host.classify, texts))

        alone, together = (
            torch.stack([output.outputs.data.double() for output in outputs])
            for outputs in self.host.submit(classify_twice).result()
        )
        tolerance = max(REPEATED, NOISE * torch.finfo(self.host.dtype).eps)
        if not (alone - together).abs().max() <= tolerance * alone.abs().max():
            raise ModelError(
                f"vLLM scores the same text differently in a batch of {self.name!r}: by {(alone - together).abs().max():.2g}. "
                "Load it without vllm:."
            )
        self.host.forget()

    async def read(self, rows: Sequence[list[int]]) -> list[float]:
        if (getattr(self.model.config, "type_vocab_size", None) or 0) > 1 and any(isinstance(row, TypedRow) for row in rows):
            raise RewardError(
                f"Reward {self.name!r} needs token types of text pairs, which vLLM does not get. Load it without vllm:."
            )

        async def classify_all() -> list[Any]:
            return await asyncio.gather(*(self.host.classify(row) for row in rows))

        outputs = await asyncio.wrap_future(self.host.submit(classify_all))
        cached = sum(output.num_cached_tokens for output in outputs)
        read = sum(map(len, rows)) - cached
        current_account().add(prefill_tokens=read, cached_tokens=cached, flops=self.flops * read)
        return self.combine(torch.stack([output.outputs.data for output in outputs]))
