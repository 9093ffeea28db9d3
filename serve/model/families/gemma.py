"""Gemma 1, 2 and 3 (text): norms whose weights are added to 1, a scaled embedding, GELU.

From 2 on there are norms around attention and MLP and sliding windows, in 2 soft caps, in 3 norms of the heads and a
rope for each kind of layer.
"""

from dataclasses import replace

from serve.model.config import LayerConfig, ModelConfig, TensorNames
from serve.model.families.shared import FULL, SLIDING, decoder_config, layer_kinds
from serve.model.rope import RopeConfig, nested_kinds, parse_ropes
from serve.model.settings import Settings

_AROUND = TensorNames(
    output_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    down_norm="post_feedforward_layernorm",
)


def gemma(settings: Settings) -> ModelConfig:
    """Read the settings of GemmaForCausalLM."""
    settings.refuse("use_bidirectional_attention", False)
    # Its first configurations say "gelu" and mean the approximation, in either of two fields.
    settings.refuse("hidden_activation", "gelu", "gelu_pytorch_tanh")
    settings.refuse("hidden_act", "gelu", "gelu_pytorch_tanh")
    bias = settings.flag("attention_bias")
    layer = LayerConfig(attention_bias=bias, output_bias=bias, norm_offset=1.0, activation="gelu_tanh")
    config = decoder_config(settings, layer, head_dim=256, tied=True, activation=None)
    return replace(config, embedding_scale=config.hidden_size**0.5)


def gemma2(settings: Settings) -> ModelConfig:
    """Read the settings of Gemma2ForCausalLM."""
    layers = settings.count("num_hidden_layers")
    kinds = layer_kinds(settings, [SLIDING if (number + 1) % 2 else FULL for number in range(layers)])
    layer = replace(_layer(settings), softcap=settings.cap("attn_logit_softcapping", 50.0))
    return _config(settings, layer, kinds, parse_ropes(settings.raw, set(kinds)), softcap=30.0)


def gemma3(settings: Settings) -> ModelConfig:
    """Read the settings of Gemma3ForCausalLM."""
    every = settings.count("sliding_window_pattern", 6)
    layers = settings.count("num_hidden_layers")
    kinds = layer_kinds(settings, [SLIDING if (number + 1) % every else FULL for number in range(layers)])
    # The class knows a cap of the scores, its attention does not use one.
    settings.refuse("attn_logit_softcapping")
    return _config(settings, replace(_layer(settings), head_norms="each"), kinds, _ropes(settings, kinds), softcap=None)


def _layer(settings: Settings) -> LayerConfig:
    settings.refuse("use_bidirectional_attention", False)
    bias = settings.flag("attention_bias")
    return LayerConfig(
        attention_bias=bias,
        output_bias=bias,
        norm_offset=1.0,
        attention_scale=settings.number("query_pre_attn_scalar", 256) ** -0.5,
        activation="gelu_tanh",
        names=_AROUND,
    )


def _config(
    settings: Settings, layer: LayerConfig, kinds: list[str], ropes: dict[str, RopeConfig], softcap: float | None
) -> ModelConfig:
    config = decoder_config(
        settings,
        layer,
        kinds,
        window=settings.raw.get("sliding_window", 4096),
        ropes=ropes,
        head_dim=256,
        tied=True,
        activation="hidden_activation",
    )
    cap = settings.cap("final_logit_softcapping", softcap)
    return replace(config, embedding_scale=config.hidden_size**0.5, logit_softcap=cap)


def _ropes(settings: Settings, kinds: list[str]) -> dict[str, RopeConfig]:
    """Gemma 3's: layers with a sliding window have another base, and only the other layers are scaled."""
    if nested_kinds(settings.raw):
        defaults = {FULL: 1e6, SLIDING: 1e4}
        return {kind: RopeConfig.parse(settings.raw, kind, defaults[kind]) for kind in set(kinds)}
    ropes = parse_ropes(settings.raw, set(kinds), theta=1e6)
    if SLIDING in ropes:
        ropes[SLIDING] = RopeConfig(theta=settings.number("rope_local_base_freq", 1e4))
    return ropes
