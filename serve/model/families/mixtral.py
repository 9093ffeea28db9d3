"""Mixtral: Mistral with a routed feed-forward in every layer."""

from serve.model.config import LayerConfig, ModelConfig, RoutedConfig
from serve.model.families.shared import FULL, SLIDING, decoder_config
from serve.model.rope import parse_ropes
from serve.model.settings import Settings


def mixtral(settings: Settings) -> ModelConfig:
    """Read the settings of MixtralForCausalLM."""
    routed = RoutedConfig(
        branches=settings.count("num_local_experts", 8),
        chosen=settings.count("num_experts_per_tok", 2),
        inner=settings.count("intermediate_size"),
        renormalised=True,
        router="block_sparse_moe.gate",
        gate_up=("block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w3"),
        down="block_sparse_moe.experts.{}.w2",
    )
    window = settings.raw.get("sliding_window")
    kinds = [SLIDING if window else FULL] * settings.count("num_hidden_layers")
    ropes = parse_ropes(settings.raw, set(kinds), theta=1e6)
    return decoder_config(settings, LayerConfig(routed=routed), kinds, window=window, ropes=ropes, eps=1e-5)
