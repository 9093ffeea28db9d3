"""What an expert of a LoRA shall add to a merge of LoRAs, as factors.

Many methods (averages, sums, isotropic and aligned singular vectors) give a backbone whose change of a weight lies in
the space that the left factors of all LoRAs span together: θ_m − θ₀ = Q X, and so does θ_k − θ_m. Q has as many columns
as the LoRAs have directions, and the rest of θ_k − θ_m is the rounding of the stored backbone. So instead of a
decomposition of the whole matrix one product with θ₀ − θ_m is enough, which also measures what is outside of the space.
"""

import torch
from torch import Tensor

from merge.checkpoint import Checkpoint
from merge.experts.sources import Sources
from merge.methods.singular import SLACK, rounding, squares
from merge.methods.vectors import Factors, row_blocks
from merge.task_vectors import lora_factors

WIDEST = 4
"""The directions of all LoRAs are at most this part of a weight's smaller side; beyond it little is saved."""

ARITHMETIC = 1e-5
"""What sums in float32 leave of the squares of a matrix that lies in the space."""


def spanned_change(fine_tune: Checkpoint, sources: Sources, name: str) -> Factors | None:
    """θ_k − θ_m of a 2-D weight without the rounding of the stored backbone, as factors.

    Semantics: Q (Qᵀ (θ₀ − θ_m) + Qᵀ B_k A_k), Q an orthonormal basis of the B_i of all fine-tunes θ₀ + B_i A_i.
    ‖(I − Q Qᵀ) (θ₀ − θ_m)‖² must not exceed the rounding error of the stored backbone.

    The best r directions of it leave at most that much more of ‖θ_k − θ_m‖² than those of θ_k − θ_m.

    Args:
        fine_tune: θ_k.
        sources: base, backbone and all fine-tunes.
        name: the weight's.

    Returns:
        None if a fine-tune is not a LoRA on the base, their directions are too many, or the backbone's change is not in
        the space that they span.
    """
    own = lora_factors(name, sources.base, fine_tune, torch.float32)
    if own is None or not sources.fine_tunes:
        return None
    shape, lefts = sources.base.tensors[name].shape, []
    for item in {item.path: item for item in (*sources.fine_tunes, fine_tune)}.values():
        found = lora_factors(name, sources.base, item, torch.float32)
        if found is None:
            return None
        lefts.append(found.left)
    if WIDEST * sum(left.shape[1] for left in lefts) > min(shape):
        return None
    q = torch.linalg.qr(torch.cat(lefts, 1)).Q
    right = _within(q, sources, name)
    return None if right is None else Factors(q, right.addmm_(q.T @ own.left, own.right))


def _within(q: Tensor, sources: Sources, name: str) -> Tensor | None:
    """Qᵀ (θ₀ − θ_m), [R, K]; None if more of θ₀ − θ_m is outside of the space of Q than rounding explains."""
    base, merged = sources.base, sources.merged or sources.backbone
    shape, stored = base.tensors[name].shape, merged.tensors[name].dtype
    right = q.new_zeros(q.shape[1], shape[1])
    whole = noise = 0.0
    for rows in row_blocks(shape):  # both were checked for values that are not finite when they were merged
        origin = base.tensor(name, torch.float32, check=False, rows=rows)
        change = origin - merged.tensor(name, torch.float32, check=False, rows=rows)
        right.addmm_(q[slice(None) if rows is None else rows].T, change)
        whole += squares(change)
        noise += origin.numel() * rounding(origin, stored)
    return right if whole - squares(right) <= SLACK * noise + ARITHMETIC * whole else None
