"""The served families: for each architecture of config.json, the function that reads its settings.

A family states what its layers compute and what its tensors are called; `decoder_config` has what families share.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from merge.bundle import SERVED_ARCHITECTURES, BundleError
from serve.model.config import ModelConfig
from serve.model.errors import ModelError
from serve.model.families.gemma import gemma, gemma2, gemma3
from serve.model.families.granite import granite, granite4
from serve.model.families.llama import llama
from serve.model.families.mistral import mistral
from serve.model.families.mixtral import mixtral
from serve.model.families.olmo import olmo2, olmo3
from serve.model.families.phi3 import phi3
from serve.model.families.qwen import qwen2, qwen3, qwen3_moe
from serve.model.families.smollm3 import smollm3
from serve.model.settings import Settings, read_json

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


def read_config(directory: Path) -> ModelConfig:
    """Read config.json (and, for the end-of-text tokens, generation_config.json) of a model directory.

    Raises:
        ModelError: no such file, another architecture, or a setting this decoder does not implement (named).
    """
    raw = read_json(directory / "config.json")
    architecture = _architecture(raw, directory)
    try:
        return FAMILIES[architecture](Settings(raw, directory, architecture))
    except KeyError as error:
        raise ModelError(f"{directory / 'config.json'} lacks {error}") from error
    except ModelError:
        raise
    except BundleError as error:
        raise ModelError(str(error)) from error
    except (TypeError, ValueError) as error:
        raise ModelError(f"{directory / 'config.json'} has a value of the wrong type: {error}") from error


def _architecture(raw: Mapping[str, Any], directory: Path) -> str:
    names: list[str] = raw.get("architectures") or []
    found = next((name for name in names if name in FAMILIES), None)
    if found is None:
        what = ", ".join(names) or f"model_type {raw.get('model_type')!r}"
        raise ModelError(f"{directory} holds {what}; this decoder serves {', '.join(SERVED_ARCHITECTURES)}")
    return found
