"""What config.json says, reduced to what the decoder needs and checked."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from merge.bundle import SERVED_ARCHITECTURES, BundleError, end_tokens
from serve.model.errors import ModelError
from serve.model.rope import RopeConfig

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a Llama-family decoder.

    Attributes:
        architecture: one of `SERVED_ARCHITECTURES`.
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
        return _parse(raw, architecture, end_tokens(directory), directory)
    except KeyError as error:
        raise ModelError(f"{directory / 'config.json'} lacks {error}") from error
    except ModelError:
        raise
    except BundleError as error:
        raise ModelError(str(error)) from error
    except (TypeError, ValueError) as error:
        raise ModelError(f"{directory / 'config.json'} has a value of the wrong type: {error}") from error


def _parse(raw: Mapping[str, Any], architecture: str, eos: tuple[int, ...], directory: Path) -> ModelConfig:
    if (activation := raw.get("hidden_act", "silu")) not in {"silu", "swish"}:
        raise ModelError(f"hidden_act {activation!r} is not implemented: the Llama family uses 'silu'")
    if raw.get("quantization_config"):
        raise ModelError("quantised backbones are not implemented: give weights in float32, bfloat16 or float16")
    hidden, heads = _count(raw, "hidden_size"), _count(raw, "num_attention_heads")
    qwen2, has_bias = architecture.startswith("Qwen2"), bool(raw.get("attention_bias", False))
    mistral, qwen3 = architecture.startswith("Mistral"), architecture.startswith("Qwen3")
    config = ModelConfig(
        architecture=architecture,
        vocab_size=_count(raw, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_count(raw, "intermediate_size"),
        num_heads=heads,
        num_kv_heads=int(raw.get("num_key_value_heads") or heads),
        head_dim=int(raw.get("head_dim") or (128 if qwen3 else hidden // heads)),
        windows=_windows(raw, architecture),
        rms_norm_eps=float(_given(raw, "rms_norm_eps", 1e-6)),
        rope=RopeConfig.parse(raw),
        tied=bool(raw.get("tie_word_embeddings", False)),
        attention_bias=qwen2 or (has_bias and not mistral),
        output_bias=has_bias and not (qwen2 or mistral),
        mlp_bias=architecture.startswith("Llama") and bool(raw.get("mlp_bias", False)),
        qk_norm=qwen3,
        max_positions=_count(raw, "max_position_embeddings"),
        dtype=_dtype(raw, directory),
        eos_token_ids=eos,
    )
    if config.num_heads % config.num_kv_heads:
        raise ModelError(
            f"num_attention_heads {config.num_heads} is not a multiple of num_key_value_heads {config.num_kv_heads}"
        )
    return config


def _architecture(raw: Mapping[str, Any], directory: Path) -> str:
    names: list[str] = raw.get("architectures") or []
    found = next((name for name in names if name in SERVED_ARCHITECTURES), None)
    if found is None:
        what = ", ".join(names) or f"model_type {raw.get('model_type')!r}"
        raise ModelError(f"{directory} holds {what}; this decoder serves {', '.join(SERVED_ARCHITECTURES)}")
    return found


def _windows(raw: Mapping[str, Any], architecture: str) -> tuple[int | None, ...]:
    # The defaults here are those of the architectures' own configuration classes.
    layers, window = _count(raw, "num_hidden_layers"), raw.get("sliding_window", 4096)
    if architecture.startswith("Llama") or not window:
        return (None,) * layers
    if architecture.startswith("Mistral"):
        return (int(window),) * layers
    if not raw.get("use_sliding_window", False):
        return (None,) * layers
    first = int(_given(raw, "max_window_layers", 28))
    kinds = raw.get("layer_types") or ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    if len(kinds) != layers:
        raise ModelError(f"layer_types names {len(kinds)} layers, num_hidden_layers says {layers}")
    return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)


def _dtype(raw: Mapping[str, Any], directory: Path) -> torch.dtype:
    said = raw.get("dtype") or raw.get("torch_dtype") or "float32"
    if said == "auto":  # as in transformers: that of the stored weights
        return _stored_dtype(directory)
    dtype = _DTYPES.get(str(said).removeprefix("torch."))
    if dtype is None:
        raise ModelError(f"dtype {said!r} is not one of {', '.join(_DTYPES)} and auto")
    return dtype


def _stored_dtype(directory: Path) -> torch.dtype:
    for shard in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(shard, framework="pt") as file:
                names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
                found = {names.get(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{shard} is not a readable safetensors file: {error}") from error
        widest = next((name for name in _DTYPES if name in found), None)
        if widest is not None:
            return _DTYPES[widest]
    raise ModelError(f"dtype is 'auto', but {directory} has no safetensors file with weights to take it from")


def _given(raw: Mapping[str, Any], key: str, usual: Any = None) -> Any:
    """A field that must not be null; absent, it is `usual`.

    Raises:
        KeyError: it is absent, and there is no usual value.
    """
    value = raw[key] if usual is None else raw.get(key, usual)
    if value is None:
        raise ModelError(f"config.json: {key} is null; it must be a number")
    return value


def _count(raw: Mapping[str, Any], key: str, usual: int | None = None) -> int:
    value = _given(raw, key, usual)
    if type(value) is not int or value < 1:
        raise ModelError(f"config.json: {key} is {value!r}; it must be a positive whole number")
    return value


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
