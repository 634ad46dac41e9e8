"""Transformers models in this process."""

import torch  # noqa: F401, before `quiet`, because it sets the level of its logger

from cards.backends.quiet import quiet

with quiet():  # packages for quantised weights log as they are imported
    import transformers.modeling_utils  # noqa: F401
