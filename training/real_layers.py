"""The upper layers of a decoder, trained on cached hidden states of the frozen layers below them.

A pair is read as one sequence: prompt, chosen response, rejected response. The rejected response does not attend to the
chosen one and has its positions. So each token has the hidden state that it has in a text of its own, and the prompt is read
once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Gemma3TextModel

from real_data import Pair

BATCH = 3072  # tokens with padding


def lower_part(model: Gemma3TextModel, layers: int) -> Gemma3TextModel:
    """Return the first layers of a model, without the final norm."""
    return _part(model, 0, layers, nn.Identity())


def upper_part(model: Gemma3TextModel, layers: int) -> Gemma3TextModel:
    """Return the layers of a model after the first ones, which read `inputs_embeds`."""
    return _part(model, layers, len(model.layers), model.norm)


def _part(model: Gemma3TextModel, start: int, end: int, norm: nn.Module) -> Gemma3TextModel:
    part: Any = copy.copy(model)
    part._modules = dict(model._modules)
    part.config = copy.deepcopy(model.config)
    part.layers = nn.ModuleList(model.layers[start:end])
    part.config.layer_types = part.config.layer_types[start:end]
    part.config.num_hidden_layers = end - start
    part.norm = norm
    return cast(Gemma3TextModel, part)


def batches(pairs: Sequence[Pair], chosen: Sequence[int]) -> Iterator[list[int]]:
    """Yield groups of pairs of similar length, of at most BATCH tokens with padding."""
    group: list[int] = []
    for i in sorted(chosen, key=lambda i: len(pairs[i])):
        if group and len(pairs[i]) * (len(group) + 1) > BATCH:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def layout(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor, Tensor]:
    """Return token ids [pairs, tokens], positions [pairs, tokens] and the mask of attention [pairs, 1, tokens, tokens]."""
    width = max(map(len, pairs))
    ids, positions = torch.zeros(len(pairs), width, dtype=torch.long), torch.zeros(len(pairs), width, dtype=torch.long)
    mask = torch.ones(width, width, dtype=torch.bool).tril().repeat(len(pairs), 1, 1, 1)
    for row, pair in enumerate(pairs):
        start, (chosen, rejected) = len(pair.prompt), pair.responses
        second = start + len(chosen)
        ids[row, : len(pair)] = torch.tensor([*pair.prompt, *chosen, *rejected])
        positions[row] = torch.arange(width)
        positions[row, second:] -= len(chosen)
        mask[row, 0, second:, start:second] = False
    return ids, positions, mask


def read(part: Gemma3TextModel, positions: Tensor, mask: Tensor, **inputs: Any) -> Tensor:
    """Return the hidden states [pairs, tokens, width] of a part of a model."""
    masks = {"full_attention": mask, "sliding_attention": mask}  # no text is longer than the window
    return cast(Tensor, part(position_ids=positions, attention_mask=masks, use_cache=False, **inputs).last_hidden_state)


class Activations:
    """Hidden states of all pairs after the frozen layers, in a file of bfloat16."""

    def __init__(self, path: Path, pairs: Sequence[Pair], width: int) -> None:
        self.pairs = pairs
        self.starts = np.cumsum([0, *map(len, pairs)])
        self.done = path.with_suffix(".done")
        shape = (int(self.starts[-1]), width)
        self.values = np.memmap(path, np.uint16, "r+" if path.exists() else "w+", shape=shape)

    def fill(self, lower: Gemma3TextModel) -> Iterator[int]:
        """Compute what is missing and yield the number of pairs of each batch. A later call goes on."""
        before = int(self.done.read_text()) if self.done.exists() else 0
        for number, group in enumerate(batches(self.pairs, range(len(self.pairs)))):
            if number >= before:
                ids, positions, mask = layout([self.pairs[i] for i in group])
                with torch.inference_mode():
                    hidden = read(lower, positions, mask, input_ids=ids)
                for row, i in enumerate(group):
                    self.values[self.starts[i] : self.starts[i + 1]] = (
                        hidden[row, : len(self.pairs[i])].view(torch.uint16).numpy()
                    )
                self.done.write_text(str(number + 1))
            yield len(group)

    def __getitem__(self, group: Sequence[int]) -> Tensor:
        """Return hidden states [pairs, tokens, width]."""
        parts = [torch.from_numpy(self.values[self.starts[i] : self.starts[i + 1]].copy()).view(torch.bfloat16) for i in group]
        return nn.utils.rnn.pad_sequence(parts, batch_first=True)
