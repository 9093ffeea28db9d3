"""Qwen2 and Qwen3: a bias of queries, keys and values, then norms of their heads; sliding windows in some layers."""

from serve.model.config import LayerConfig, ModelConfig
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
