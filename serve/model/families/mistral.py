"""Mistral: Llama without biases, with one sliding window for all layers or none."""

from serve.model.config import LayerConfig, ModelConfig
from serve.model.families.shared import FULL, SLIDING, decoder_config
from serve.model.settings import Settings


def mistral(settings: Settings) -> ModelConfig:
    """Read the settings of MistralForCausalLM."""
    window = settings.raw.get("sliding_window", 4096)  # the default of its configuration class
    kinds = [SLIDING if window else FULL] * settings.count("num_hidden_layers")
    return decoder_config(settings, LayerConfig(), kinds, window=window)
