"""What a decoder layer computes with its weights, as values that the compiled call must all know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, Protocol

from kernels.gated import ACTIVATIONS, Activation

HeadNorms = Literal["none", "each", "all"]
"""Norms of queries and keys before the rotation: none, of each head, or of all heads of a token at once."""


@dataclass(frozen=True)
class LayerMath:
    """What a layer computes: with other values the same weights give another result.

    Attributes:
        heads, kv_heads, head_dim: of the attention.
        rotated: the first dimensions of each head, which are rotated.
        eps: of all norms.
        norm_offset: added to the weights of all norms.
        head_norms: norms of queries and keys.
        attention_scale: of the products of queries and keys.
        softcap: bound of the scaled products; None: they have none.
        activation: of the MLP's gate.
        residual_scale: of what the attention and the MLP add to the residual stream.
        feed_forward: "gated", one MLP for all tokens, or "routed", several of which each token takes some.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rotated: int
    eps: float
    norm_offset: float
    head_norms: HeadNorms
    attention_scale: float
    softcap: float | None
    activation: Activation
    residual_scale: float
    feed_forward: Literal["gated", "routed"]


COMPILED = frozenset({
    "heads", "kv_heads", "head_dim", "rotated", "eps", "norm_offset", "head_norms", "attention_scale", "softcap",
    "activation", "residual_scale", "feed_forward",
})  # fmt: skip
"""The values that csrc/decoder.cpp is given, or that `not_compiled` checks. A field that is not among them makes the
compiled call refuse every layer, until someone has taught it that field."""


class _HasMath(Protocol):
    @property
    def math(self) -> LayerMath: ...


def not_compiled(layers: Sequence[_HasMath]) -> str | None:
    """Why the compiled call cannot compute layers; None if it can."""
    math = next((layer.math for layer in layers if layer.math.feed_forward != "gated"), layers[0].math)
    if math.feed_forward != "gated":
        return f"the feed-forward is {math.feed_forward}"
    if any(layer.math != math for layer in layers):
        return "its layers differ in more than windows and angles"
    if unknown := sorted({field.name for field in fields(math)} - COMPILED):
        return f"{unknown[0]} is not supported by the compiled call"
    if math.activation not in ACTIVATIONS:
        return f"the activation {math.activation!r} is not supported by the compiled call"
    if math.head_dim % 2 or math.rotated % 2:
        return f"an odd number of dimensions, {math.head_dim} a head of which {math.rotated} are rotated"
    return None
