"""A decoder's layers as one call of the compiled kernels."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from struct import Struct

import torch
from torch import Tensor

from kernels.attention import AttentionBatch
from kernels.compiled import TYPES, elementwise
from kernels.decoder.layer import Layer
from kernels.decoder.layout import Layout
from kernels.expert_linear import ExpertBatch
from kernels.expert_linear.dispatch import MOST_TOKENS

ARGUMENTS = Struct("10q2d10q")
"""`DecoderArguments` of csrc/kernels.h."""


class CompiledLayers:
    """The layers of a decoder, run for a step of few tokens in one call.

    Every result is that of the single operations to the last bit: `expert_rms_norm`, `expert_linear`, `expert_bias`,
    `rotate_into_cache`, `paged_attention` and `silu_mul`, and sums of the residual stream in the dtype of `x`. What it
    saves is some ten calls a layer from Python, their tensors, and as many starts and ends of parallel regions.
    """

    def __init__(self, layers: Sequence[Layer], heads: int, kv_heads: int, head_dim: int, eps: float) -> None:
        """Remember the layers; nothing is read from them yet.

        Args:
            layers: of equal shapes.
            heads: query heads.
            kv_heads: key and value heads.
            head_dim: of each head.
            eps: of all norms.
        """
        self._layers, self._heads, self._kv_heads, self._head_dim, self._eps = layers, heads, kv_heads, head_dim, eps
        self._layout: Layout | None = None

    def __call__(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        slot_mapping: Tensor,
        attention: Mapping[int | None, AttentionBatch],
        experts: ExpertBatch | None,
    ) -> bool:
        """Run all layers, where the kernels know how: on the CPU, for no more tokens than the compiled product takes.

        Args:
            x: `[T, hidden]` contiguous, the residual stream; changed.
            cos: `[T, 1, head_dim]` in the dtype of `x`.
            sin: the same shape, its first half negated.
            keys: of each layer `[num_blocks, block_size, kv_heads, head_dim]`; changed.
            values: the same shapes; changed.
            slot_mapping: `[T]` int64 places of the tokens' keys and values in the caches.
            attention: the step's plan for each sliding window.
            experts: the plan of the step's tokens, or None.

        Returns:
            Whether it did. Where not, nothing was changed.

        Raises:
            ValueError: plans, places or slots do not fit the tokens and the layers.
            IndexError: a place or a block is outside the caches; nothing was changed.
        """
        kernels, tokens = elementwise(x, cos, sin, keys[0]), x.shape[0]
        if kernels is None or not 0 < tokens <= MOST_TOKENS[x.dtype] or self._head_dim % 2:
            return False
        if self._layout is None or not self._layout.fits(self._layers, keys, values):
            self._layout = Layout.of(self._layers, keys, values)
        layout = self._layout
        if layout.addresses is None:
            return False
        experts = experts if experts is not None and experts.has_experts else None
        plans = [attention[window] for window in layout.windows]
        blocks, block_size = keys[0].shape[:2]
        _check(tokens, block_size, slot_mapping, plans, experts, layout.slots)
        views = array("q")
        for plan in plans:
            views.extend((plan.rows.data_ptr(), plan.block_tables.data_ptr(), plan.block_tables.stride(0)))
        cos, sin, slot_mapping = cos.contiguous(), sin.contiguous(), slot_mapping.contiguous()
        kernels.call(
            "decoder",
            ARGUMENTS,
            TYPES[x.dtype],
            x.shape[1],
            self._layers[0].down.weight.shape[1],
            self._heads,
            self._kv_heads,
            self._head_dim,
            block_size,
            blocks,
            self._eps,
            self._head_dim**-0.5,
            layout.addresses.buffer_info()[0],
            len(self._layers),
            tokens,
            x.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            slot_mapping.data_ptr(),
            views.buffer_info()[0],
            len(plans),
            0 if experts is None else experts.view_address,
        )
        return True


def _check(
    tokens: int,
    block_size: int,
    slot_mapping: Tensor,
    plans: Sequence[AttentionBatch],
    experts: ExpertBatch | None,
    slots: int | None,
) -> None:
    """Whether a step's plans fit its tokens and the caches; a ValueError says what does not."""
    if slot_mapping.shape != (tokens,) or slot_mapping.dtype != torch.int64:
        raise ValueError(f"slot_mapping must be int64 [{tokens}], not {slot_mapping.dtype} {list(slot_mapping.shape)}")
    for plan in plans:
        if plan.tokens != tokens or plan.block_size != block_size:
            raise ValueError(
                f"the attention plans {plan.tokens} tokens in blocks of {plan.block_size}; there are {tokens} tokens "
                f"in blocks of {block_size}"
            )
    if experts is not None and experts.tokens != tokens:
        raise ValueError(f"the batch plans {experts.tokens} tokens but x has {tokens}")
    if experts is not None and slots is not None and experts.highest_slot >= slots:
        raise ValueError(f"slot {experts.highest_slot} is not among the {slots} slots of the layers")
