"""A decoder's layers as one call of the compiled kernels."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from kernels.attention import AttentionBatch
from kernels.compiled import TYPES, Arguments, elementwise
from kernels.decoder.layer import Layer
from kernels.decoder.layout import Layout
from kernels.decoder.math import not_compiled
from kernels.expert_linear import ExpertBatch
from kernels.expert_linear.dispatch import MOST_TOKENS
from kernels.gated import ACTIVATIONS

ARGUMENTS = Arguments(
    "decoder",
    "type hidden inner heads kv_heads dim rotated block_size blocks activation norms_of_rows "
    "eps:d norm_offset:d scale:d softcap:d residual_scale:d "
    "layer layers tokens x rotation places view views batch",
)
"""`DecoderArguments` of csrc/kernels.h."""


class CompiledLayers:
    """The layers of a decoder, run for a step of few tokens in one call.

    Every result is that of the single operations to the last bit: `expert_rms_norm`, `expert_linear`, `expert_bias`,
    `rotate_into_cache`, `paged_attention` and `gated`, and sums of the residual stream in the dtype of `x`. What it
    saves is some ten calls a layer from Python, their tensors, and as many starts and ends of parallel regions.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        """Remember the layers; nothing is read from their weights yet.

        Args:
            layers: of equal shapes.

        Raises:
            ValueError: `not_compiled` says that the layers compute something else.
        """
        if reason := not_compiled(layers):
            raise ValueError(f"these layers cannot be computed in one compiled call: {reason}")
        self._layers, self._math = layers, layers[0].math
        self._layout: Layout | None = None

    def __call__(
        self,
        x: Tensor,
        angles: Mapping[Hashable, tuple[Tensor, Tensor]],
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        slot_mapping: Tensor,
        attention: Mapping[int | None, AttentionBatch],
        experts: ExpertBatch | None,
    ) -> bool:
        """Run all layers if the kernels support it: on the CPU, for no more tokens than the compiled product takes.

        Args:
            x: `[T, hidden]` contiguous, the residual stream; changed.
            angles: cosines and sines of each of the layers' rotations, `[T, 1, rotated]` in the dtype of `x`, the first
                half of the sines negated.
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
        turns = [part for pair in angles.values() for part in pair]
        kernels, tokens = elementwise(x, keys[0], *turns), x.shape[0]
        if kernels is None or not 0 < tokens <= MOST_TOKENS[x.dtype]:
            return False
        if self._layout is None or not self._layout.fits(self._layers, keys, values):
            self._layout = Layout.of(self._layers, keys, values)
        layout = self._layout
        if layout.addresses is None:
            return False
        experts = experts if experts is not None and experts.has_experts else None
        plans = [attention[window] for window in layout.windows]
        blocks, block_size = keys[0].shape[:2]
        math = self._math
        _check(tokens, block_size, slot_mapping, plans, experts, layout.slots)
        _check_angles(tokens, math.rotated, turns)
        views = array("q")
        for plan in plans:
            views.extend((plan.rows.data_ptr(), plan.block_tables.data_ptr(), plan.block_tables.stride(0)))
        # Kept by name until the call returns: the kernels have their addresses only.
        turns = [part.contiguous() for rotation in layout.rotations for part in angles[rotation]]
        rotations, slot_mapping = array("q", (part.data_ptr() for part in turns)), slot_mapping.contiguous()
        kernels.call(
            ARGUMENTS,
            type=TYPES[x.dtype],
            hidden=x.shape[1],
            inner=self._layers[0].down.weight.shape[1],
            heads=math.heads,
            kv_heads=math.kv_heads,
            dim=math.head_dim,
            rotated=math.rotated,
            block_size=block_size,
            blocks=blocks,
            activation=ACTIVATIONS[math.activation],
            norms_of_rows=int(math.head_norms == "all"),
            eps=math.eps,
            norm_offset=math.norm_offset,
            scale=math.attention_scale,
            softcap=math.softcap or 0.0,
            residual_scale=math.residual_scale,
            layer=layout.addresses.buffer_info()[0],
            layers=len(self._layers),
            tokens=tokens,
            x=x.data_ptr(),
            rotation=rotations.buffer_info()[0],
            places=slot_mapping.data_ptr(),
            view=views.buffer_info()[0],
            views=len(plans),
            batch=0 if experts is None else experts.view_address,
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


def _check_angles(tokens: int, rotated: int, turns: Sequence[Tensor]) -> None:
    for part in turns:
        if part.shape != (tokens, 1, rotated):
            raise ValueError(f"cosines and sines must be [{tokens}, 1, {rotated}], not {list(part.shape)}")
