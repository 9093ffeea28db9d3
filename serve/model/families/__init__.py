"""The served families: for each architecture of config.json, the function that reads its settings.

A family says in values what its layers compute and what its tensors are called; `decoder_config` has what they share.
"""

from collections.abc import Callable, Mapping

from serve.model.config import ModelConfig
from serve.model.families.gemma import gemma, gemma2, gemma3
from serve.model.families.granite import granite, granite4
from serve.model.families.llama import llama
from serve.model.families.mistral import mistral
from serve.model.families.mixtral import mixtral
from serve.model.families.olmo import olmo2, olmo3
from serve.model.families.phi3 import phi3
from serve.model.families.qwen import qwen2, qwen3, qwen3_moe
from serve.model.families.smollm3 import smollm3
from serve.model.settings import Settings

FAMILIES: Mapping[str, Callable[[Settings], ModelConfig]] = {
    "LlamaForCausalLM": llama,
    "MistralForCausalLM": mistral,
    "Qwen2ForCausalLM": qwen2,
    "Qwen3ForCausalLM": qwen3,
    "SmolLM3ForCausalLM": smollm3,
    "Phi3ForCausalLM": phi3,
    "GraniteForCausalLM": granite,
    "GraniteMoeHybridForCausalLM": granite4,
    "Olmo2ForCausalLM": olmo2,
    "Olmo3ForCausalLM": olmo3,
    "GemmaForCausalLM": gemma,
    "Gemma2ForCausalLM": gemma2,
    "Gemma3ForCausalLM": gemma3,
    "Qwen3MoeForCausalLM": qwen3_moe,
    "MixtralForCausalLM": mixtral,
}

__all__ = ["FAMILIES"]
