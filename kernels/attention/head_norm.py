"""The norm of each head's query or key, before its rotation (Qwen 3, Gemma 3)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kernels.expert_linear.batch import ExpertBatch
from kernels.expert_norm import expert_rms_norm, shifts_of


@dataclass(frozen=True, eq=False)
class HeadNorm:
    """What `expert_rms_norm` takes beside the heads.

    Attributes:
        weight: `[head_dim]`.
        eps: added to the mean square.
        delta: `[S, head_dim]` fp32 every slot's shift of the weight, or None.
        batch: slots and gates of the step's tokens, or None.
        offset: added to the weight.
    """

    weight: Tensor
    eps: float
    delta: Tensor | None
    batch: ExpertBatch | None
    offset: float

    def __call__(self, x: Tensor) -> Tensor:
        """`[T, heads, head_dim]` to the same shape."""
        return expert_rms_norm(x, self.weight, self.eps, self.delta, self.batch, self.offset)

    def shifts(self, tokens: int) -> tuple[Tensor, ExpertBatch] | None:
        """Delta and batch if some token has an expert; otherwise None.

        Raises:
            ValueError: they do not fit.
        """
        return shifts_of(self.delta, self.batch, tokens, self.weight.shape[0])
