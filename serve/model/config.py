"""What config.json says, reduced to what the decoder needs and checked."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from serve.model.errors import ModelError
from serve.model.rope import RopeConfig

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a Llama-family decoder.

    Attributes:
        architecture: one of `ARCHITECTURES`.
        windows: for each layer the number of most recent positions that attention sees, or None for all of them.
        attention_bias: q, k and v have a bias.
        output_bias: the attention's output projection has a bias.
        mlp_bias: gate, up and down have a bias.
        qk_norm: each head of q and k is RMS-normalised before the rotation (Qwen3).
        max_positions: longest sequence the model was made for.
        dtype: how the weights are stored.
        eos_token_ids: tokens that end a text.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    rms_norm_eps: float
    rope: RopeConfig
    tied: bool
    attention_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    max_positions: int
    dtype: torch.dtype
    eos_token_ids: tuple[int, ...]

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.windows)


def read_config(directory: Path) -> ModelConfig:
    """Read config.json (and, for the end-of-text tokens, generation_config.json) of a model directory.

    Raises:
        ModelError: no such file, another architecture, or a setting this decoder does not implement (named).
    """
    raw = _read_json(directory / "config.json")
    architecture = _architecture(raw, directory)
    try:
        return _parse(raw, architecture, _eos_tokens(raw, directory))
    except KeyError as error:
        raise ModelError(f"{directory / 'config.json'} lacks {error}") from error


def _parse(raw: Mapping[str, Any], architecture: str, eos: tuple[int, ...]) -> ModelConfig:
    if (activation := raw.get("hidden_act", "silu")) not in {"silu", "swish"}:
        raise ModelError(f"hidden_act {activation!r} is not implemented: the Llama family uses 'silu'")
    if raw.get("quantization_config"):
        raise ModelError("quantised backbones are not implemented: give weights in float32, bfloat16 or float16")
    dtype = raw.get("dtype") or raw.get("torch_dtype") or "float32"
    if dtype not in _DTYPES:
        raise ModelError(f"dtype {dtype!r} is not one of {', '.join(_DTYPES)}")
    heads = int(raw["num_attention_heads"])
    qwen2, has_bias = architecture.startswith("Qwen2"), bool(raw.get("attention_bias", False))
    mistral, qwen3 = architecture.startswith("Mistral"), architecture.startswith("Qwen3")
    config = ModelConfig(
        architecture=architecture,
        vocab_size=int(raw["vocab_size"]),
        hidden_size=int(raw["hidden_size"]),
        intermediate_size=int(raw["intermediate_size"]),
        num_heads=heads,
        num_kv_heads=int(raw.get("num_key_value_heads") or heads),
        head_dim=int(raw.get("head_dim") or (128 if qwen3 else raw["hidden_size"] // heads)),
        windows=_windows(raw, architecture),
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope=RopeConfig.parse(raw),
        tied=bool(raw.get("tie_word_embeddings", False)),
        attention_bias=qwen2 or (has_bias and not mistral),
        output_bias=has_bias and not (qwen2 or mistral),
        mlp_bias=architecture.startswith("Llama") and bool(raw.get("mlp_bias", False)),
        qk_norm=qwen3,
        max_positions=int(raw["max_position_embeddings"]),
        dtype=_DTYPES[dtype],
        eos_token_ids=eos,
    )
    if config.num_heads % config.num_kv_heads:
        raise ModelError(
            f"num_attention_heads {config.num_heads} is not a multiple of num_key_value_heads {config.num_kv_heads}"
        )
    return config


def _architecture(raw: Mapping[str, Any], directory: Path) -> str:
    names: list[str] = raw.get("architectures") or []
    found = next((name for name in names if name in ARCHITECTURES), None)
    if found is None:
        what = ", ".join(names) or f"model_type {raw.get('model_type')!r}"
        raise ModelError(f"{directory} holds {what}; this decoder serves {', '.join(ARCHITECTURES)}")
    return found


def _windows(raw: Mapping[str, Any], architecture: str) -> tuple[int | None, ...]:
    # The defaults here are those of the architectures' own configuration classes.
    layers, window = int(raw["num_hidden_layers"]), raw.get("sliding_window", 4096)
    if architecture.startswith("Llama") or not window:
        return (None,) * layers
    if architecture.startswith("Mistral"):
        return (int(window),) * layers
    if not raw.get("use_sliding_window", False):
        return (None,) * layers
    first = int(raw.get("max_window_layers", 28))
    kinds = raw.get("layer_types") or ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    if len(kinds) != layers:
        raise ModelError(f"layer_types names {len(kinds)} layers, num_hidden_layers says {layers}")
    return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)


def _eos_tokens(raw: Mapping[str, Any], directory: Path) -> tuple[int, ...]:
    generation = directory / "generation_config.json"
    found = _read_json(generation).get("eos_token_id") if generation.is_file() else None
    if found is None:
        found = raw.get("eos_token_id")
    if found is None:
        return ()
    return tuple(found) if isinstance(found, list) else (int(found),)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ModelError(f"no {path.name} in {path.parent}: a model is a Hugging Face directory") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(document, dict):
        raise ModelError(f"{path} is not a JSON object")
    return document
