"""One layer of the decoder, as its configuration says."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.attention import paged_attention, rotate_into_cache
from kernels.expert_linear import ExpertBatch
from kernels.gated import gated
from serve.model.batch import ForwardBatch
from serve.model.config import LayerConfig, ModelConfig
from serve.model.layers import Linear, Placement, RmsNorm, place_linear, place_norm
from serve.model.routed import RoutedMlp


@dataclass(frozen=True)
class Made:
    """What a part of a layer adds to the residual stream: [T, hidden], times a factor."""

    values: Tensor
    factor: float

    def added_to(self, x: Tensor) -> Tensor:
        """The sum."""
        return x + self.values if self.factor == 1 else x + self.values * self.factor


class DecoderLayer:
    """Attention and feed-forward, each added to the residual stream.

    Attributes:
        math: what it computes, as the kernels need to know it.
        rotation: how it turns positions into angles.
        window: how many of the most recent positions the attention sees; None: all.
        gate_up, down: the MLP; a layer whose feed-forward is routed has none.
        routed: the feed-forward if it is routed, or None.
    """

    gate_up: Linear
    down: Linear

    def __init__(self, config: ModelConfig, layer: LayerConfig, dtype: torch.dtype, device: torch.device) -> None:
        hidden, inner, names = config.hidden_size, config.intermediate_size, layer.names
        self.math, self.rotation, self.window = config.math(layer), layer.rope, layer.window
        self._names = names
        heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim

        def norm(size: int, present: bool = True) -> RmsNorm | None:
            return RmsNorm(size, config.rms_norm_eps, dtype, device, layer.norm_offset) if present else None

        self.input_norm = norm(hidden, names.input_norm is not None)
        self.qkv = Linear((heads + 2 * kv_heads) * dim, hidden, layer.attention_bias, dtype, device)
        of_rows, normed = layer.head_norms == "all", layer.head_norms != "none"
        self.q_norm = norm(heads * dim if of_rows else dim, normed)
        self.k_norm = norm(kv_heads * dim if of_rows else dim, normed)
        self.output = Linear(hidden, heads * dim, layer.output_bias, dtype, device)
        self.output_norm = norm(hidden, names.output_norm is not None)
        self.mlp_norm = norm(hidden, names.mlp_norm is not None)
        self.routed = None
        if layer.routed is None:
            self.gate_up = Linear(2 * inner, hidden, layer.mlp_bias, dtype, device)
            self.down = Linear(hidden, inner, layer.mlp_bias, dtype, device)
        else:
            self.routed = RoutedMlp(layer.routed, hidden, layer.activation, dtype, device)
        self.down_norm = norm(hidden, names.down_norm is not None)

    def __call__(
        self,
        x: Tensor,
        made: Made | None,
        batch: ForwardBatch,
        cos: Tensor,
        sin: Tensor,
        keys: Tensor,
        values: Tensor,
        wide: Tensor | None = None,
    ) -> tuple[Tensor, Made]:
        """One layer; the step's keys and values are written to its cache.

        A sum of the residual stream is made together with the norm of it, which may be that of the next layer.

        Args:
            x: [T, hidden], the residual stream.
            made: what the layer before is still to add to it, or None.
            batch: the step's tokens.
            cos: of the tokens' positions.
            sin: likewise.
            keys: the layer's cache; changed.
            values: likewise.
            wide: memory [T or more, 2 * inner] for the MLP, which all layers of a step share; None: new memory.

        Returns:
            The residual stream, and what is still to be added to it.
        """
        experts, scale = batch.experts, self.math.residual_scale
        x, normed = _summed(x, made, self.input_norm, experts)
        attended = self._attention(normed, batch, cos, sin, keys, values)
        own = Made(_normed(self.output_norm, self.output(attended, experts), experts), scale)
        x, normed = _summed(x, own, self.mlp_norm, experts)
        return x, Made(_normed(self.down_norm, self._feed_forward(normed, experts, wide), experts), scale)

    def _feed_forward(self, x: Tensor, experts: ExpertBatch | None, wide: Tensor | None) -> Tensor:
        if self.routed is not None:
            return self.routed(x, experts)
        return self.down(gated(self.gate_up(x, experts, wide), self.math.activation), experts)

    def _attention(
        self, x: Tensor, batch: ForwardBatch, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """[T, hidden] to what all heads have gathered, [T, heads * head_dim]."""
        math, experts = self.math, batch.experts
        sizes = [math.heads * math.head_dim, *[math.kv_heads * math.head_dim] * 2]
        query, key, value = torch.split(self.qkv(x, experts), sizes, dim=1)
        norms = None
        if self.q_norm is not None and self.k_norm is not None:
            if math.head_norms == "all":
                query, key = self.q_norm(query, experts), self.k_norm(key, experts)
            else:
                norms = self.q_norm.of_heads(experts), self.k_norm.of_heads(experts)
        parts = [part.view(len(x), -1, math.head_dim) for part in (query, key, value)]
        turned = rotate_into_cache(parts[0], parts[1], parts[2], cos, sin, keys, values, batch.slot_mapping, norms)
        plan = batch.attention[self.window]
        return paged_attention(turned, keys, values, plan, math.attention_scale, math.softcap).flatten(1)

    def placements(self, prefix: str, config: ModelConfig) -> dict[str, Placement]:
        """Placements of the layer's parameters, under their Hugging Face names."""
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        names, inner = self._names, config.intermediate_size
        found = {
            **place_linear(_under(prefix, names.qkv), _sizes(names.qkv, [q, kv, kv]), self.qkv),
            **place_linear(_under(prefix, [names.output]), [config.hidden_size], self.output),
        }
        if self.routed is None:
            found |= place_linear(_under(prefix, names.gate_up), _sizes(names.gate_up, [inner, inner]), self.gate_up)
            found |= place_linear(_under(prefix, [names.down]), [config.hidden_size], self.down)
        else:
            found |= self.routed.placements(prefix)
        norms = {
            names.input_norm: self.input_norm,
            names.output_norm: self.output_norm,
            names.mlp_norm: self.mlp_norm,
            names.down_norm: self.down_norm,
            "self_attn.q_norm": self.q_norm,
            "self_attn.k_norm": self.k_norm,
        }
        for name, norm in norms.items():
            if norm is not None:
                found |= place_norm(f"{prefix}.{name}", norm)
        return found


def _summed(x: Tensor, made: Made | None, norm: RmsNorm | None, experts: ExpertBatch | None) -> tuple[Tensor, Tensor]:
    """The residual stream with the addend, and its norm, or the stream itself without a norm."""
    if made is None:
        return x, _normed(norm, x, experts)
    if norm is None:
        x = made.added_to(x)
        return x, x
    return norm.added(x, made.values, made.factor, experts)


def _normed(norm: RmsNorm | None, x: Tensor, experts: ExpertBatch | None) -> Tensor:
    return x if norm is None else norm(x, experts)


def _under(prefix: str, names: Sequence[str]) -> list[str]:
    return [f"{prefix}.{name}" for name in names]


def _sizes(names: Sequence[str], sizes: list[int]) -> list[int]:
    """Rows of each of the checkpoint's tensors, which may be one for all parts."""
    return sizes if len(names) == len(sizes) else [sum(sizes)]
