"""SmolLM3: Llama with layers that do not look at positions, every fourth unless config.json says which."""

from dataclasses import replace

from serve.model.config import LayerConfig, ModelConfig
from serve.model.errors import ModelError
from serve.model.families.shared import FULL, SLIDING, decoder_config, layer_kinds
from serve.model.rope import NO_ROPE, parse_ropes
from serve.model.settings import Settings


def smollm3(settings: Settings) -> ModelConfig:
    """Read the settings of SmolLM3ForCausalLM."""
    rotated = _rotated(settings)
    window = settings.raw.get("sliding_window") if settings.flag("use_sliding_window") else None
    kinds = layer_kinds(settings, [SLIDING if window and not turns else FULL for turns in rotated])
    bias = settings.flag("attention_bias")
    layer = LayerConfig(attention_bias=bias, output_bias=bias, mlp_bias=settings.flag("mlp_bias"))
    ropes = parse_ropes(settings.raw, set(kinds), theta=2e6)
    config = decoder_config(settings, layer, kinds, window=window, ropes=ropes, tied=True)
    layers = zip(config.layers, rotated, strict=True)
    return replace(config, layers=tuple(one if turns else replace(one, rope=NO_ROPE) for one, turns in layers))


def _rotated(settings: Settings) -> list[bool]:
    """Which layers look at positions; `no_rope_layers` has 1 for those."""
    layers, given = settings.count("num_hidden_layers"), settings.raw.get("no_rope_layers")
    if given is None:
        every = settings.count("no_rope_layer_interval", 4)
        return [(number + 1) % every != 0 for number in range(layers)]
    if not isinstance(given, list) or len(given) < layers:
        raise ModelError(f"config.json: no_rope_layers must be a list of at least {layers} numbers, one for each layer")
    return [bool(one) for one in given[:layers]]
