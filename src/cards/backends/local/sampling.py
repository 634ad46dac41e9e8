"""Sampling and uncertainties on the model's device, equal to `cards.sampling` and `Entropy`."""

from __future__ import annotations

import torch
from torch import Tensor

from cards.boundaries import Boundary, Entropy
from cards.sampling import Sampling

LOOKS_FOR_TIES = ("cpu",)  # types of devices on which reading a number does not wait


def probabilities(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Return token ids [rows, k] in ascending order and their probabilities [rows, k] (float64) under the proposal.

    The order by id, unlike an order by probability, does not depend on rounding errors in nearly equal logits.
    """
    rows, vocabulary = logits.shape
    if sampling.top_k is not None and sampling.top_k < vocabulary:
        ids = most_likely(logits, sampling.top_k)
        logits = logits.gather(-1, ids)
    else:
        ids = torch.arange(vocabulary, device=logits.device).expand(rows, -1)
    logits = logits.double()
    relative = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature
    p = relative.masked_fill(relative < sampling.lowest, -torch.inf).softmax(-1)
    if sampling.top_p < 1:
        descending, order = p.sort(dim=-1, descending=True, stable=True)
        beyond = descending.cumsum(-1) - descending >= sampling.top_p
        p = p.masked_fill(beyond.scatter(-1, order, beyond), 0.0)
        p = p / p.sum(-1, keepdim=True)
    return ids, p


def most_likely(logits: Tensor, count: int) -> Tensor:
    """Return the ids [rows, count] of the highest logits in ascending order. Of equal logits the first are taken.

    count: less than the size of the vocabulary.
    `topk` takes arbitrary ones. So a second one ranks the ids that are tied for the last places. On a CPU it is left out if
    there are no ties. On another device, to wait for that answer would take longer.
    """
    if logits.device.type in LOOKS_FOR_TIES:
        best = logits.topk(count + 1, dim=-1)
        if bool((best.values[:, -2] > best.values[:, -1]).all()):
            return best.indices[:, :-1].sort(dim=-1).values
    top = logits.topk(count, dim=-1)
    lowest = top.values[:, -1:]
    ids = torch.arange(logits.shape[-1], device=logits.device, dtype=torch.float32)
    rank = torch.where(logits == lowest, -ids, -torch.inf)
    rank.scatter_(-1, top.indices, torch.where(top.values > lowest, 1.0, -top.indices.float()))
    return rank.topk(count, dim=-1).indices.sort(dim=-1).values


def draw(logits: Tensor, sampling: Sampling, u: Tensor) -> Tensor:
    """Draw one token id per row by inverse CDF: logits [rows, vocabulary], u [rows] in [0, 1) (float64) -> ids [rows].

    The id is -1 if the logits of the row contain NaN or +inf, or only -inf.
    """
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
    else:
        ids, p = probabilities(logits, sampling)
        cdf = p.cumsum(-1)
        index = (cdf <= u.unsqueeze(-1) * cdf[:, -1:]).sum(-1, keepdim=True).clamp(max=ids.shape[1] - 1)
        tokens = ids.gather(-1, index).squeeze(-1)
    return tokens.masked_fill(~logits.amax(-1).isfinite(), -1)


def uncertainty(boundary: Boundary, logits: Tensor) -> Tensor:
    """Return the boundary's uncertainty about each next token, [rows, vocabulary] -> [rows].

    The measures of `Entropy` are computed on the device. Other boundaries get the rows as numpy arrays, one at a time.
    """
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    if type(boundary).uncertainty is not Entropy.uncertainty:
        values = [boundary.uncertainty(row) for row in logits.numpy(force=True)]
        return torch.tensor(values, dtype=torch.float64, device=logits.device)
    assert isinstance(boundary, Entropy)
    if boundary.measure == "evidential":
        kept = (logits > -torch.inf).sum(-1)
        return kept / (logits.relu().sum(-1) + kept)
    logp = logits.log_softmax(-1)
    if boundary.measure == "mcp":
        return 1 - logp.amax(-1).exp()
    return -(logp.exp() * logp.clamp(min=-1e30)).sum(-1)  # the clamp prevents 0 * -inf
