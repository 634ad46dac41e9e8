"""Draws and ends segments inside vLLM, by the laws of this package: a logits processor for both of vLLM's model runners.

It runs in vLLM's engine process, on the requests that have the options of `vllm_options.py`, and leaves all others alone. A
server finds it by itself where this package is installed (entry point `vllm.logits_processors`).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessor as RunnerV1
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as RunnerV2

from cards.backends.local.sampling import draw, uncertainty
from cards.backends.vllm.options import DRAWN, Rule
from cards.boundaries import Entropy
from cards.sampling import Sampling


class Processor(RunnerV1, RunnerV2):  # type: ignore[misc]
    """Serves both interfaces: V1 keeps rows up to date itself (`update_state`), V2 names them at each step (`ctx`)."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raises SettingError, a ValueError, which a server answers with 400."""
        Rule.of(sampling_params)

    def __init__(self, vllm_config: Any, device_or_states: Any, is_pin_memory: bool = False) -> None:
        self.rows: dict[int, tuple[Rule, list[int]]] = {}  # V1: by place in the batch, with the tokens so far
        self.slots: dict[int, Rule] = {}  # V2: by slot
        self.states = device_or_states

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        def begin(params: SamplingParams, prompt: list[int] | None, output: list[int]) -> tuple[Rule, list[int]] | None:
            rule = Rule.of(params)
            return None if rule is None else (rule, output)

        process_dict_updates(self.rows, batch_update, begin)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        self.slots.pop(req_idx, None)
        rule = Rule.of(sampling_params)
        if rule is not None:
            self.slots[req_idx] = rule
        return rule is not None

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        if ctx is None:
            rows = [(row, rule, len(output)) for row, (rule, output) in self.rows.items()]
        else:
            slots, lengths = ctx.idx_mapping_np, ctx.seq_lens_upper_bound_np
            if len(slots) != len(logits):  # a row for each token that a draft wrote
                slots, lengths = ctx.expanded_idx_mapping.numpy(force=True), ctx.pos.numpy(force=True) + 1
            given = self.states.prompt_len.np
            rows = [
                (row, rule, int(lengths[row] - given[slot]))
                for row, slot in enumerate(slots.tolist())
                if (rule := self.slots.get(slot)) is not None
            ]
        rows = [(row, rule, drawn) for row, rule, drawn in rows if drawn >= 0]  # no part of a prompt
        if rows:
            choose(logits, rows)
        return logits


def choose(logits: Tensor, rows: list[tuple[int, Rule, int]]) -> None:
    """Leave one token to each of the rows (place, rule, tokens drawn so far) of logits [batch, vocabulary], in place.

    Without waiting for the device: everything stays in tensors.
    """
    places = _tensor([row for row, _, _ in rows], logits)
    raw = logits[places]
    tokens = torch.zeros_like(places)
    values = torch.full_like(raw[:, 0], DRAWN)
    by_sampling: dict[Sampling, list[int]] = {}
    by_boundary: dict[Entropy, list[int]] = {}
    for i, (_, rule, drawn) in enumerate(rows):
        by_sampling.setdefault(rule.sampling, []).append(i)
        if rule.boundary is not None and drawn >= rule.boundary.minimum:
            by_boundary.setdefault(rule.boundary, []).append(i)
    u = _tensor([rule.uniform(drawn) for _, rule, drawn in rows], logits, torch.float64)
    for sampling, members in by_sampling.items():
        at = _tensor(members, logits)
        tokens[at] = draw(raw[at], sampling, u[at])
    stops = _tensor([rule.stop for _, rule, _ in rows], logits).clamp(max=raw.shape[1] - 1)
    for boundary, members in by_boundary.items():
        at = _tensor(members, logits)
        unsure = uncertainty(boundary, raw[at])
        ends = cast(Tensor, boundary.ends_before(unsure))  # type: ignore[arg-type]
        tokens[at] = torch.where(ends, stops[at], tokens[at])
        values[at] = torch.where(ends, unsure, values[at])
    logits[places] = float("-inf")
    logits[places, tokens] = values


def _tensor(values: list[Any], like: Tensor, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor(values, dtype=dtype).to(like.device, non_blocking=True)
