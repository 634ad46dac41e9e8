"""The logits processor that draws tokens and ends segments inside vLLM, for both of vLLM's model runners.

It runs in vLLM's engine process and changes only requests with the options of `cards.backends.vllm.options`. vLLM servers
load it through the entry point `vllm.logits_processors` if this package is installed.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessor as RunnerV1
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as RunnerV2

from cards.backends.local.sampling import draw, uncertainty
from cards.backends.vllm.options import DRAWN, INVALID, REFUSED, DrawSpec
from cards.boundaries import Entropy
from cards.sampling import Sampling


class Processor(RunnerV1, RunnerV2):  # type: ignore[misc]
    """A logits processor for both interfaces: V1 tracks the rows in `update_state`, V2 gets them in each step (`ctx`)."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raise SettingError on wrong options. It is a ValueError, so a server replies with status 400."""
        DrawSpec.parse(sampling_params)

    def __init__(self, vllm_config: Any, device_or_states: Any, is_pin_memory: bool = False) -> None:
        # V1: by row of the batch, with the tokens of the prompt and those so far
        self.rows: dict[int, tuple[DrawSpec, list[int], list[int]]] = {}
        self.slots: dict[int, DrawSpec] = {}  # V2: by slot
        self.states = device_or_states
        self.config = vllm_config
        self.tokenizer = cache(lambda: tokenizer_of(self.config.model_config))

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        def begin(
            params: SamplingParams, prompt: list[int] | None, output: list[int]
        ) -> tuple[DrawSpec, list[int], list[int]] | None:
            spec = DrawSpec.parse(params)
            return None if spec is None else (spec, prompt or [], output)

        process_dict_updates(self.rows, batch_update, begin)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        self.slots.pop(req_idx, None)
        spec = DrawSpec.parse(sampling_params)
        if spec is not None:
            self.slots[req_idx] = spec
        return spec is not None

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        if ctx is None:
            rows = [(row, spec, len(output)) for row, (spec, _, output) in self.rows.items()]
        else:
            slots, lengths = ctx.idx_mapping_np, ctx.seq_lens_upper_bound_np
            if len(slots) != len(logits):  # with a draft model, there is a row for each drafted token
                slots, lengths = ctx.expanded_idx_mapping.numpy(force=True), ctx.pos.numpy(force=True) + 1
            prompt_lengths = self.states.prompt_len.np
            rows = [
                (row, spec, int(lengths[row] - prompt_lengths[slot]))
                for row, slot in enumerate(slots.tolist())
                if (spec := self.slots.get(slot)) is not None
            ]
        rows = [(row, spec, drawn) for row, spec, drawn in rows if drawn >= 0]  # negative while the prompt is read
        refused = []  # positions of rows where the grammar allows no token
        for i, (row, spec, _) in enumerate(rows):
            if spec.shaping is not None:
                tokens = self._tokens(row) if ctx is None else self._tokens_v2(ctx, row, int(slots[row]), int(lengths[row]))
                if not spec.shape(logits[row], tokens, self.tokenizer):
                    refused.append(i)
        if rows:
            draw_rows(logits, rows, refused)
        return logits

    def _tokens(self, row: int) -> list[int]:
        """Return the tokens of the prompt and the response of a row."""
        _, prompt, output = self.rows[row]
        return [*prompt, *output]

    def _tokens_v2(self, ctx: Any, row: int, slot: int, length: int) -> list[int]:
        """Return the same for a row of V2. Tokens of a draft are only in the input of the step."""
        drafted = 0 if len(ctx.idx_mapping_np) == len(ctx.expanded_idx_mapping) else int(ctx.expanded_local_pos[row])
        tokens: list[int] = self.states.all_token_ids.gpu[slot, : length - drafted].tolist()
        return [*tokens, *ctx.input_ids[row - drafted + 1 : row + 1].tolist()]


def tokenizer_of(config: Any) -> Any:
    """Return the tokenizer of the model that vLLM runs."""
    from transformers import AutoTokenizer

    options = {"trust_remote_code": config.trust_remote_code, "revision": config.tokenizer_revision}
    return AutoTokenizer.from_pretrained(config.tokenizer, **options)


def draw_rows(logits: Tensor, rows: list[tuple[int, DrawSpec, int]], refused: list[int]) -> None:
    """Draw a token for each row (index, spec, tokens drawn so far) of logits [batch, vocabulary]; mark those in `refused`.

    In place: all other logits of the row become -inf. No value is copied to the CPU, so that vLLM need not wait for the device.
    """
    indices = _tensor([row for row, _, _ in rows], logits)
    raw = logits[indices]
    tokens = torch.zeros_like(indices)
    values = torch.full_like(raw[:, 0], DRAWN)
    by_sampling: dict[Sampling, list[int]] = {}
    by_boundary: dict[Entropy, list[int]] = {}
    for i, (_, spec, drawn) in enumerate(rows):
        by_sampling.setdefault(spec.sampling, []).append(i)
        if spec.boundary is not None and drawn >= spec.boundary.minimum:
            by_boundary.setdefault(spec.boundary, []).append(i)
    u = _tensor([spec.uniform(drawn) for _, spec, drawn in rows], logits, torch.float64)
    for sampling, members in by_sampling.items():
        at = _tensor(members, logits)
        tokens[at] = draw(raw[at], sampling, u[at])
    stops = _tensor([spec.stop for _, spec, _ in rows], logits).clamp(max=raw.shape[1] - 1)
    for boundary, members in by_boundary.items():
        at = _tensor(members, logits)
        measured = uncertainty(boundary, raw[at])
        ends = cast(Tensor, boundary.ends_before(measured))  # type: ignore[arg-type]
        tokens[at] = torch.where(ends, stops[at], tokens[at])
        values[at] = torch.where(ends, measured, values[at])
    values = values.where(tokens >= 0, INVALID)  # a boundary replaces the token, but the uncertainty of NaN ends no segment
    if refused:
        values[_tensor(refused, logits)] = REFUSED
    tokens = tokens.clamp(min=0)
    logits[indices] = float("-inf")
    logits[indices, tokens] = values


def _tensor(values: list[Any], like: Tensor, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor(values, dtype=dtype).to(like.device, non_blocking=True)
