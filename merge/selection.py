"""Which tensors of a model are merged; what is left is copied from the base."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

HEADS = (
    "classifier.*", "pre_classifier.*", "classification_head.*", "score.*", "qa_outputs.*", "cls.*", "head.*", "fc.*",
    "dense_head.*", "reg_head.*", "value_head.*", "v_head.*",
)  # fmt: skip
"""Heads that each task trains for itself: averaging two of them mixes answers that mean different things, whether or
not their shapes agree. A language model's output head is none of these: its rows mean the same tokens everywhere."""

BUFFERS = (
    "*inv_freq", "*position_ids", "*.masked_bias", "*.running_mean", "*.running_var", "*num_batches_tracked",
)  # fmt: skip
"""Tensors that no gradient has moved."""

LEFT_ALONE = (*HEADS, *BUFFERS)
"""The default of a recipe's `exclude`."""


def is_selected(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether a name matches one of `include` and none of `exclude` (shell-style patterns)."""
    return any(fnmatchcase(name, pattern) for pattern in include) and not any(
        fnmatchcase(name, pattern) for pattern in exclude
    )
