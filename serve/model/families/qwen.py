"""Qwen2 and Qwen3: a bias of queries, keys and values, then norms of their heads; sliding windows in some layers.

Qwen3-MoE has a routed feed-forward in most layers.
"""

from dataclasses import replace

from serve.model.config import LayerConfig, ModelConfig, RoutedConfig
from serve.model.families.shared import FULL, SLIDING, decoder_config, layer_kinds
from serve.model.settings import Settings


def qwen2(settings: Settings) -> ModelConfig:
    """Read the settings of Qwen2ForCausalLM."""
    return decoder_config(settings, LayerConfig(attention_bias=True), kinds(settings), window=window(settings))


def qwen3(settings: Settings) -> ModelConfig:
    """Read the settings of Qwen3ForCausalLM."""
    bias = settings.flag("attention_bias")
    layer = LayerConfig(attention_bias=bias, output_bias=bias, head_norms="each")
    return decoder_config(settings, layer, kinds(settings), window=window(settings), head_dim=128)


def qwen3_moe(settings: Settings) -> ModelConfig:
    """Read the settings of Qwen3MoeForCausalLM."""
    routed = RoutedConfig(
        branches=settings.count("num_experts", settings.raw.get("num_local_experts")),
        chosen=settings.count("num_experts_per_tok", 8),
        inner=settings.count("moe_intermediate_size", 768),
        renormalised=settings.flag("norm_topk_prob"),
    )
    every, dense = settings.count("decoder_sparse_step", 1), settings.raw.get("mlp_only_layers") or ()
    bias = settings.flag("attention_bias")
    # Its class has no head_dim by default, its layers take one sliding window or none.
    of_each = [SLIDING if window(settings) else FULL] * settings.count("num_hidden_layers")
    layer = LayerConfig(attention_bias=bias, output_bias=bias, head_norms="each")
    config = decoder_config(settings, layer, of_each, window=window(settings))
    return replace(
        config,
        layers=tuple(
            layer if number in dense or (number + 1) % every else replace(layer, routed=routed)
            for number, layer in enumerate(config.layers)
        ),
    )


def window(settings: Settings) -> int | None:
    """The sliding window of the layers that have one."""
    found = settings.raw.get("sliding_window", 4096)
    return found if found and settings.flag("use_sliding_window") else None


def kinds(settings: Settings) -> list[str]:
    """Which layers have a sliding window."""
    layers = settings.count("num_hidden_layers")
    if window(settings) is None:
        return [FULL] * layers
    first = int(settings.given("max_window_layers", 28))
    return layer_kinds(settings, [SLIDING if number >= first else FULL for number in range(layers)])
