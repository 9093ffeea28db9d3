"""OLMo 2 and 3: norms of the outputs of attention and MLP, and of all queries and all keys of a token together."""

from serve.model.config import LayerConfig, ModelConfig, TensorNames
from serve.model.families.shared import FULL, SLIDING, decoder_config, layer_kinds
from serve.model.rope import RopeConfig, nested_kinds, parse_ropes
from serve.model.settings import Settings

_NAMES = TensorNames(
    input_norm=None,
    output_norm="post_attention_layernorm",
    mlp_norm=None,
    down_norm="post_feedforward_layernorm",
)


def olmo2(settings: Settings) -> ModelConfig:
    """Read the settings of Olmo2ForCausalLM."""
    return decoder_config(settings, _layer(settings), eps=1e-5)


def olmo3(settings: Settings) -> ModelConfig:
    """Read the settings of Olmo3ForCausalLM, most of whose layers have a sliding window and an unstretched rope."""
    layers = settings.count("num_hidden_layers")
    kinds = layer_kinds(settings, [SLIDING if (number + 1) % 4 else FULL for number in range(layers)])
    window = settings.raw.get("sliding_window", 4096)
    return decoder_config(settings, _layer(settings), kinds, window=window, ropes=_ropes(settings, kinds), eps=1e-5)


def _layer(settings: Settings) -> LayerConfig:
    bias = settings.flag("attention_bias")
    return LayerConfig(attention_bias=bias, output_bias=bias, head_norms="all", names=_NAMES)


def _ropes(settings: Settings, kinds: list[str]) -> dict[str, RopeConfig]:
    ropes = parse_ropes(settings.raw, set(kinds), theta=5e5)
    if SLIDING in ropes and not nested_kinds(settings.raw):
        ropes[SLIDING] = RopeConfig(theta=ropes[SLIDING].theta)
    return ropes
