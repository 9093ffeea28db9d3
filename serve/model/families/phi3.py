"""Phi-3 and Phi-4: Llama with queries, keys and values in one tensor, gate and up in another, and longrope."""

from serve.model.config import LayerConfig, ModelConfig, TensorNames
from serve.model.families.shared import FULL, SLIDING, decoder_config
from serve.model.rope import parse_ropes
from serve.model.settings import Settings

_NAMES = TensorNames(qkv=("self_attn.qkv_proj",), gate_up=("mlp.gate_up_proj",))


def phi3(settings: Settings) -> ModelConfig:
    """Read the settings of Phi3ForCausalLM."""
    settings.refuse("attention_bias", False)
    window = settings.raw.get("sliding_window")
    kinds = [SLIDING if window else FULL] * settings.count("num_hidden_layers")
    ropes = parse_ropes(settings.raw, set(kinds), partial=True)
    return decoder_config(settings, LayerConfig(names=_NAMES), kinds, window=window, ropes=ropes, eps=1e-5)
