"""Granite 3, and 4 if it is dense: multipliers of embedding, attention, residual stream and logits.

Granite 4 calls its one gated MLP the shared one, has its gate and up in one tensor, and may not look at positions.
"""

from dataclasses import replace

from serve.model.config import LayerConfig, ModelConfig, TensorNames
from serve.model.errors import ModelError
from serve.model.families.shared import FULL, decoder_config
from serve.model.rope import NO_ROPE
from serve.model.settings import Settings


def granite(settings: Settings) -> ModelConfig:
    """Read the settings of GraniteForCausalLM."""
    bias = settings.flag("attention_bias")
    layer = LayerConfig(
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=settings.flag("mlp_bias"),
        attention_scale=settings.number("attention_multiplier", 1.0),
        residual_scale=settings.number("residual_multiplier", 1.0),
    )
    return _multiplied(settings, decoder_config(settings, layer))


def granite4(settings: Settings) -> ModelConfig:
    """Read the settings of GraniteMoeHybridForCausalLM, whose layers must all be attention and a gated MLP."""
    kinds = settings.raw.get("layer_types") or settings.raw.get("layers_block_type") or ["mamba"]
    if other := sorted({str(kind) for kind in kinds} - {"attention", FULL}):
        raise ModelError(f"{settings.architecture} with layers of the kind {other[0]!r} is not implemented")
    if settings.raw.get("num_local_experts", 8):
        raise ModelError(f"{settings.architecture} with a routed feed-forward (num_local_experts) is not implemented")
    bias, rotated = settings.flag("attention_bias"), settings.raw.get("position_embedding_type") == "rope"
    layer = LayerConfig(
        attention_bias=bias,
        output_bias=bias,
        attention_scale=settings.number("attention_multiplier", 1.0),
        residual_scale=settings.number("residual_multiplier", 1.0),
        names=TensorNames(gate_up=("shared_mlp.input_linear",), down="shared_mlp.output_linear"),
    )
    ropes = None if rotated else {FULL: NO_ROPE}
    config = decoder_config(settings, layer, ropes=ropes)
    return replace(_multiplied(settings, config), intermediate_size=settings.count("shared_intermediate_size", 1024))


def _multiplied(settings: Settings, config: ModelConfig) -> ModelConfig:
    return replace(
        config,
        embedding_scale=settings.number("embedding_multiplier", 1.0),
        logit_divisor=settings.number("logits_scaling", 1.0),
    )
