"""The low-rank part of one weight, as LoRA has it, and the rules that it keeps."""

from dataclasses import dataclass

import torch
from torch import Tensor

from merge.bundle.errors import BundleError

FACTOR_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.int8)

LOW_RANK_KINDS = ("lora_a", "lora_b", "lora_scale")
"""What the three tensors of a weight are called in a file, after the weight's name and a dot."""


@dataclass(frozen=True)
class LowRankDelta:
    """Low-rank part of one 2-D weight of shape [N, K] (LoRA, Hu et al. 2021).

    Semantics: ΔW = B diag(scale) A

    Attributes:
        a: A, [r, K] bfloat16, float16, float32 or int8.
        b: B, [N, r], of A's dtype.
        scale: [r] float32, finite, one number for each of the r directions: LoRA's alpha / r, or for int8 factors the
            product of the scale of A's row and that of B's column.
    """

    a: Tensor
    b: Tensor
    scale: Tensor

    @property
    def rank(self) -> int:
        """r, the number of directions."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """[N, K] of the weight that this is added to."""
        return self.b.shape[0], self.a.shape[1]

    @property
    def quantised(self) -> bool:
        """Whether the factors have 8 bits."""
        return self.a.dtype == torch.int8

    @property
    def entries(self) -> int:
        """Numbers in the factors: r (N + K)."""
        return self.a.numel() + self.b.numel()

    @property
    def nnz(self) -> int:
        """Numbers in the factors that are not zero."""
        return int(torch.count_nonzero(self.a)) + int(torch.count_nonzero(self.b))

    @property
    def nbytes(self) -> int:
        """Bytes of the three tensors."""
        return self.a.nbytes + self.b.nbytes + self.scale.nbytes

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The product as a dense [N, K] matrix of `dtype`, multiplied in float32 (in float64 for float64)."""
        wide = torch.promote_types(dtype, torch.float32)
        return ((self.b.to(wide) * self.scale.to(wide)) @ self.a.to(wide)).to(dtype)


def check_low_rank(name: str, delta: LowRankDelta) -> None:
    """Check the low-rank part of a 2-D weight.

    Raises:
        BundleError: shapes, dtypes or values break the rules above, the rank is 0, or it is more than min(N, K).
    """
    a, b, scale = delta.a, delta.b, delta.scale
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise BundleError(
            f"{name}.lora_a is {list(a.shape)} and .lora_b {list(b.shape)}; they must be [r, K] and [N, r]"
        )
    if a.dtype != b.dtype or a.dtype not in FACTOR_DTYPES:
        raise BundleError(
            f"{name}.lora_a is {a.dtype} and .lora_b {b.dtype}; both must be bfloat16, float16, float32 or int8"
        )
    rank, most = delta.rank, min(delta.shape)
    if not 1 <= rank <= most:
        raise BundleError(
            f"{name} has a low-rank part of rank {rank}; the rank of a [{delta.shape[0]}, {delta.shape[1]}] weight "
            f"must be 1 to {most}"
        )
    if scale.dtype != torch.float32 or scale.shape != (rank,):
        raise BundleError(
            f"{name}.lora_scale is {scale.dtype} {list(scale.shape)}; it must be float32 and [{rank}], one number for "
            "each direction"
        )
    for kind, tensor in zip(LOW_RANK_KINDS, (a, b, scale), strict=True):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BundleError(f"{name}.{kind} holds NaN or infinity")
