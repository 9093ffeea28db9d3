"""The one-dimensional parameters of an expert: norms and biases that differ from token to token."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.expert_linear.batch import ExpertBatch


def expert_rms_norm(
    x: Tensor, weight: Tensor, eps: float, delta: Tensor | None = None, batch: ExpertBatch | None = None
) -> Tensor:
    """Root-mean-square norm (arXiv:1910.07467) whose weight each token's experts shift.

    Semantics: `y[t] = x[t] / sqrt(mean(x[t]^2) + eps) * w_t`, `w_t = weight + sum_j gates[t, j] * delta[slots[t, j]]`.
    As in transformers' Llama the normalised value is computed in fp32 and rounded to the dtype of `x` before the
    multiplication; `w_t` is summed in fp32 and rounded to the dtype of `weight`, as a patched weight would be.

    Args:
        x: `[T, ..., H]`; the first dimension is the tokens, dimensions between are heads.
        weight: `[H]`.
        eps: added to the mean square.
        delta: `[S, H]` every slot's shift of the weight, or None.
        batch: slots and gates of the T tokens, or None.

    Returns:
        The shape of `x`, in the promoted dtype of `x` and `weight`.

    Raises:
        ValueError: shapes or slots do not fit together.
    """
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight must be [{x.shape[-1]}] for x {list(x.shape)}, not {list(weight.shape)}")
    wide = x.to(torch.float32)
    normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    shift = expert_shift(delta, batch, x.shape[0], weight.shape[0])
    if shift is None:
        return weight * normed
    own = (weight.to(torch.float32) + shift).to(weight.dtype)
    return own.view(x.shape[0], *(1 for _ in x.shape[1:-1]), -1) * normed


def expert_bias(y: Tensor, delta: Tensor | None = None, batch: ExpertBatch | None = None) -> Tensor:
    """Add to every token the shifts that its experts make to a layer's bias.

    Semantics: `y[t] + sum_j gates[t, j] * delta[slots[t, j]]`, in fp32, rounded once to the dtype of `y`.

    Args:
        y: `[T, N]`.
        delta: `[S, N]` every slot's shift of the bias, or None.
        batch: slots and gates of the T tokens, or None.

    Raises:
        ValueError: shapes or slots do not fit together.
    """
    shift = expert_shift(delta, batch, y.shape[0], y.shape[-1])
    return y if shift is None else (y.to(torch.float32) + shift).to(y.dtype)


def expert_shift(delta: Tensor | None, batch: ExpertBatch | None, tokens: int, size: int) -> Tensor | None:
    """Every token's `sum_j gates[t, j] * delta[slots[t, j]]` as fp32 `[T, size]`, or None where no token has any."""
    if delta is None or batch is None or not batch.has_experts:
        return None
    if delta.dim() != 2 or delta.shape[1] != size:
        raise ValueError(f"delta must be [slots, {size}], not {list(delta.shape)}")
    if batch.tokens != tokens:
        raise ValueError(f"the batch plans {batch.tokens} tokens but the input has {tokens}")
    if batch.highest_slot >= delta.shape[0]:
        raise ValueError(f"slot {batch.highest_slot} is not among the {delta.shape[0]} slots of delta")
    shift = torch.zeros(tokens, size, device=delta.device)
    for column in range(batch.slots.shape[1]):
        slots = batch.slots[:, column].to(torch.int64)
        gates = batch.gates[:, column] * (slots >= 0)
        shift += gates[:, None] * delta[slots.clamp(min=0)].to(torch.float32)
    return shift
