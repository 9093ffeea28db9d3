"""The one-dimensional parameters of an expert: norms and biases that differ from token to token."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import on_gpu
from kernels.compiled import TYPES, Arguments, Library, elementwise
from kernels.expert_linear.batch import ExpertBatch

NORM_ARGUMENTS = Arguments(
    "norm",
    "type tokens heads size x token_stride head_stride weight eps:d offset:d out delta batch",
)
BIAS_ARGUMENTS = Arguments(
    "bias",
    "type tokens size y y_stride out delta batch",
)
"""`NormArguments` and `BiasArguments` of csrc/kernels.h."""


def expert_rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    delta: Tensor | None = None,
    batch: ExpertBatch | None = None,
    offset: float = 0.0,
) -> Tensor:
    """Root-mean-square norm (arXiv:1910.07467) whose weight each token's experts shift.

    Semantics: `y[t] = x[t] / sqrt(mean(x[t]^2) + eps) * (offset + w_t)`,
    `w_t = weight + sum_j gates[t, j] * delta[slots[t, j]]`. As in transformers' Llama the normalised value is computed
    in fp32 and rounded to the dtype of `x` before the multiplication; `w_t` is summed in fp32 and rounded to the dtype
    of `weight`, as a patched weight would be. With an offset, which is 1 in Gemma, everything but `w_t` is fp32 and
    rounded once, as in transformers' Gemma.

    Args:
        x: `[T, ..., H]`; the first dimension is the tokens, dimensions between are heads.
        weight: `[H]`.
        eps: added to the mean square.
        delta: `[S, H]` fp32 every slot's shift of the weight, or None.
        batch: slots and gates of the T tokens, or None.
        offset: added to the weight.

    Returns:
        The shape of `x`, in the promoted dtype of `x` and `weight`.

    Raises:
        ValueError: shapes or slots do not fit together.
    """
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight must be [{x.shape[-1]}] for x {list(x.shape)}, not {list(weight.shape)}")
    shifts = shifts_of(delta, batch, x.shape[0], weight.shape[0])
    if on_gpu.runs_triton(x) and x.dim() in {2, 3}:
        from kernels.norm_triton import norm_triton  # Triton is optional, and takes a second to import

        return norm_triton(x, None, 1.0, weight, eps, shifts, offset)[1]
    kernels = elementwise(x, weight)
    if kernels is not None and x.dim() in {2, 3} and weight.stride(0) == 1:
        return _norm_compiled(kernels, x, weight, eps, shifts, offset)
    wide = x.to(torch.float32)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    own = weight
    if shifts is not None:
        own = (weight.to(torch.float32) + _sum_of(*shifts)).to(weight.dtype)
        own = own.view(x.shape[0], *(1 for _ in x.shape[1:-1]), -1)
    if offset:
        return ((own.to(torch.float32) + offset) * normed).to(torch.promote_types(x.dtype, weight.dtype))
    return own * normed.to(x.dtype)


def added_rms_norm(
    x: Tensor,
    made: Tensor,
    factor: float,
    weight: Tensor,
    eps: float,
    delta: Tensor | None = None,
    batch: ExpertBatch | None = None,
    offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Add to the residual stream, and norm the sum.

    Semantics: `s = x + factor * made`, in the dtype of `x`; `y = expert_rms_norm(s, ...)`.

    Args:
        x: `[T, H]`, the residual stream.
        made: `[T, H]`, the dtype of `x`.
        factor: of what is added.
        weight: `[H]`.
        eps: as in `expert_rms_norm`, like those that follow.
        delta: every slot's shift of the weight, or None.
        batch: slots and gates of the T tokens, or None.
        offset: added to the weight.

    Returns:
        s and y, both `[T, H]`.

    Raises:
        ValueError: shapes or slots do not fit together.
    """
    if on_gpu.runs_triton(x):
        from kernels.norm_triton import norm_triton  # Triton is optional, and takes a second to import

        return norm_triton(x, made, factor, weight, eps, shifts_of(delta, batch, x.shape[0], weight.shape[0]), offset)
    stream = x + made if factor == 1 else x + made * factor
    return stream, expert_rms_norm(stream, weight, eps, delta, batch, offset)


def expert_bias(y: Tensor, delta: Tensor | None = None, batch: ExpertBatch | None = None) -> Tensor:
    """Add to every token the shifts that its experts make to a layer's bias.

    Semantics: `y[t] + sum_j gates[t, j] * delta[slots[t, j]]`, in fp32, rounded once to the dtype of `y`.

    Args:
        y: `[T, N]`.
        delta: `[S, N]` fp32 every slot's shift of the bias, or None.
        batch: slots and gates of the T tokens, or None.

    Raises:
        ValueError: shapes or slots do not fit together.
    """
    shifts = shifts_of(delta, batch, y.shape[0], y.shape[-1])
    if shifts is None:
        return y
    if on_gpu.runs_triton(y):
        from kernels.bias_triton import bias_triton  # Triton is optional, and takes a second to import

        return bias_triton(y if y.stride(1) == 1 else y.contiguous(), *shifts)
    kernels = elementwise(y)
    if kernels is None:
        return (y.to(torch.float32) + _sum_of(*shifts)).to(y.dtype)
    y = y if y.stride(1) == 1 else y.contiguous()
    out = y.new_empty(y.shape)
    kernels.call(
        BIAS_ARGUMENTS,
        type=TYPES[y.dtype],
        tokens=y.shape[0],
        size=y.shape[1],
        y=y.data_ptr(),
        y_stride=y.stride(0),
        out=out.data_ptr(),
        delta=shifts[0].data_ptr(),
        batch=shifts[1].view_address,
    )
    return out


def _norm_compiled(
    kernels: Library,
    x: Tensor,
    weight: Tensor,
    eps: float,
    shifts: tuple[Tensor, ExpertBatch] | None,
    offset: float,
) -> Tensor:
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = x.new_empty(x.shape)
    heads, head_stride = (1, 0) if x.dim() == 2 else (x.shape[1], x.stride(1))
    kernels.call(
        NORM_ARGUMENTS,
        type=TYPES[x.dtype],
        tokens=x.shape[0],
        heads=heads,
        size=x.shape[-1],
        x=x.data_ptr(),
        token_stride=x.stride(0),
        head_stride=head_stride,
        weight=weight.data_ptr(),
        eps=eps,
        offset=offset,
        out=out.data_ptr(),
        delta=0 if shifts is None else shifts[0].data_ptr(),
        batch=0 if shifts is None else shifts[1].view_address,
    )
    return out


def shifts_of(
    delta: Tensor | None, batch: ExpertBatch | None, tokens: int, size: int
) -> tuple[Tensor, ExpertBatch] | None:
    """Both if some token of the batch has an expert; None if there is nothing to add.

    Args:
        delta: `[S, size]` fp32, or None.
        batch: of the tokens, or None.
        tokens: T.
        size: of the parameter.

    Raises:
        ValueError: they do not fit.
    """
    if delta is None or batch is None or not batch.has_experts:
        return None
    if delta.dim() != 2 or delta.shape[1] != size or delta.dtype != torch.float32 or not delta.is_contiguous():
        raise ValueError(f"delta must be contiguous fp32 [slots, {size}], not {delta.dtype} {list(delta.shape)}")
    if batch.tokens != tokens:
        raise ValueError(f"the batch plans {batch.tokens} tokens but the input has {tokens}")
    if batch.highest_slot >= delta.shape[0]:
        raise ValueError(f"slot {batch.highest_slot} is not among the {delta.shape[0]} slots of delta")
    return delta, batch


def _sum_of(delta: Tensor, batch: ExpertBatch) -> Tensor:
    """Every token's `sum_j gates[t, j] * delta[slots[t, j]]` as fp32 `[T, size]`."""
    shift = torch.zeros(batch.tokens, delta.shape[1], device=delta.device)
    for column in range(batch.slots.shape[1]):
        slots = batch.slots[:, column].to(torch.int64)
        gates = batch.gates[:, column] * (slots >= 0)
        shift += gates[:, None] * delta[slots.clamp(min=0)]
    return shift
