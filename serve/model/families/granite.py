"""Granite 3: Llama with multipliers of the embedding, the attention, the residual stream and the logits."""

from dataclasses import replace

from serve.model.config import LayerConfig, ModelConfig
from serve.model.families.shared import decoder_config
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
    return replace(
        decoder_config(settings, layer),
        embedding_scale=settings.number("embedding_multiplier", 1.0),
        logit_divisor=settings.number("logits_scaling", 1.0),
    )
