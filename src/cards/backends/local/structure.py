"""Whether a model's layers can run in cache slots, decided from its structure by one short forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import sdpa_mask

from cards.backends.local.attention import SlotAttention, use_probe

ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}  # their masks are compared below
PROBED_QUERIES = 64  # positions at which a mask is compared with the mask of the slots
Rule = Callable[[Any, Any, Tensor, Tensor], Tensor]  # transformers' mask functions: (batch, head, query, key) -> visible


def obstacle(model: PreTrainedModel, context: int) -> tuple[str | None, int]:
    """Return why the model's layers do not run in slots (None if nothing is found), and its longest window below `context`."""
    base = cast(PreTrainedModel, model.base_model)
    config = model.config.get_text_config()
    others = set(getattr(config, "layer_types", None) or ()) - ATTENTION_LAYERS
    if others or any(getattr(module, "_is_stateful", False) for module in model.modules()):
        kinds = f" ({', '.join(sorted(others))})" if others else ""
        return f"it has layers{kinds} that slots do not support", 0
    probe = MaskProbe(context)
    try:
        with torch.inference_mode(), SlotAttention(model), use_probe(probe):
            base(input_ids=torch.arange(1, 5, device=model.device).unsqueeze(0), use_cache=False)
    except Exception as problem:  # models bring their own code
        return probe.problem or f"its layers do not run with another attention ({problem})", 0
    layers = {i for m in base.modules() if isinstance(i := getattr(m, "layer_idx", None), int)}
    if probe.problem is None and (not probe.layers or layers - probe.layers):
        probe.problem = "it has layers that do not use transformers' attention interface"
    return probe.problem, max(probe.windows, default=0)


def cache_argument(model: PreTrainedModel) -> str | None:
    """Return the name of the argument and output that holds the model's own cache, or None if it has none."""
    inner = cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model  # adapters take any argument
    names = inspect.signature(inner.forward).parameters
    return next((name for name in ("cache", "past_key_values", "cache_params", "state") if name in names), None)


class MaskProbe:
    """A record of what the layers of a model ask of attention. `problem` is the first thing that slots do not support.

    The mask of each layer is compared as a rule, up to the last position of the context, so that a window of any length is
    found from a short text.
    """

    def __init__(self, context: int) -> None:
        self.context = context
        self.layers: set[int] = set()
        self.windows: set[int] = set()
        self.problem: str | None = None
        self.rules: dict[int, tuple[Tensor, Rule]] = {}  # by the address of a mask, which views of it share

    def mask(self, **arguments: Any) -> Tensor:
        skips = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        mask = cast(Tensor, sdpa_mask(**(arguments | skips)))
        self.rules[mask.untyped_storage().data_ptr()] = mask, arguments["mask_function"]
        return mask

    def attend(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        sliding_window: int | None = None,
        position_ids: Tensor | None = None,
        is_causal: bool | None = None,
        **options: Any,
    ) -> Tensor:
        layer = cast(int, module.layer_idx)
        if layer in self.layers:
            self._refuse("it runs layers more than once")
        self.layers.add(layer)
        if options.get("s_aux") is not None:
            self._refuse("its attention has sinks")
        elif tensors := [name for name, option in options.items() if isinstance(option, Tensor)]:
            self._refuse(f"its attention has a bias or other input ({', '.join(tensors)})")
        elif is_causal is False:
            self._refuse("its attention is not causal")
        elif mask is None or (rule := self._rule(mask)) is None:
            self._refuse("its attention has a mask of its own")
        elif not self._is_causal_with_window(rule, sliding_window):
            self._refuse("its mask has windows or chunks that its layers do not pass on")
        if sliding_window is not None and sliding_window < self.context:
            self.windows.add(sliding_window)
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])

    def _refuse(self, problem: str) -> None:
        self.problem = self.problem or problem

    def _rule(self, mask: Tensor) -> Rule | None:
        made, rule = self.rules.get(mask.untyped_storage().data_ptr(), (None, None))
        return rule if made is not None and mask.dtype == made.dtype else None

    def _is_causal_with_window(self, rule: Rule, window: int | None) -> bool:
        """Return whether the rule hides the later keys, and of the earlier ones those before the window, and no others."""
        query = torch.linspace(0, self.context - 1, min(PROBED_QUERIES, self.context)).long().unsqueeze(1)
        key = torch.arange(self.context).unsqueeze(0)
        expected = key <= query
        if window is not None:
            expected &= key > query - window
        zero = torch.tensor(0)
        return torch.equal(torch.as_tensor(rule(zero, zero, query, key)).expand(expected.shape), expected)
