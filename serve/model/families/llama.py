"""Llama: the plain decoder, all of whose biases are optional."""

from serve.model.config import LayerConfig, ModelConfig
from serve.model.families.shared import decoder_config
from serve.model.settings import Settings


def llama(settings: Settings) -> ModelConfig:
    """Read the settings of LlamaForCausalLM."""
    bias = settings.flag("attention_bias")
    layer = LayerConfig(attention_bias=bias, output_bias=bias, mlp_bias=settings.flag("mlp_bias"))
    return decoder_config(settings, layer)
