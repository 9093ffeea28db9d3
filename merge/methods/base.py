"""The base itself, for bundles whose experts hold all that the fine-tunes changed."""

from torch import Tensor

from merge.methods.registry import always, method
from merge.methods.vectors import TaskVectors


@method("base", by_rows=always)
def base(_name: str, base: Tensor, _vectors: TaskVectors) -> Tensor:
    """Keep the base: the experts hold all that the fine-tunes changed, and LoRAs can stay what they are.

    Semantics: θ₀

    Args:
        _name: the tensor's name; all tensors are treated alike.
        base: θ₀, any shape.
        _vectors: not read.
    """
    return base
