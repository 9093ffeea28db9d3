"""Tiny models as GGUF files, written as llama.cpp's converter writes them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, dequantize, get_tensor_name_map, quantize
from transformers import PretrainedConfig, PreTrainedModel

F32 = GGMLQuantizationType.F32
ARCHITECTURES = {"gemma3_text": "gemma3", "qwen3_moe": "qwen3moe", "mixtral": "llama"}
"""llama.cpp's name of a `model_type`, if it is another one."""

PERMUTED = ("llama", "granite", "smollm3", "mixtral")
ADDED = {"gemma": 1.0, "gemma2": 1.0, "gemma3_text": 1.0}
"""What is added to the weights of norms."""


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    kind: GGMLQuantizationType = F32,
    more: Mapping[str, Any] | None = None,
    tensors: Mapping[str, torch.Tensor] | None = None,
    tokens: bool = False,
) -> Path:
    """Write a model; the matrices have the type `kind`, further keys and tensors are written unchanged."""
    config = model.config
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    writer = GGUFWriter(path, architecture)
    keys = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
    }
    for key, value in keys.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_float32(f"{architecture}.rope.freq_base", rope.get("full_attention", rope)["rope_theta"])
    for key, value in (more or {}).items():
        add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}[type(value)]
        add(key, value)  # type: ignore[operator]
    if tokens:
        _write_tokens(writer)
    names = get_tensor_name_map(
        next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture), config.num_hidden_layers
    )
    for name, parameter in model.named_parameters():
        for stem, suffix, weight in _split(name, parameter.detach().float()):
            plain = weight.ndim == 1 or stem.endswith(".mlp.gate")
            stored = _stored(stem.split(".")[-1], weight, config)
            _add(writer, f"{names.get_name(stem)}.{suffix}", stored, F32 if plain else kind)
    for name, tensor in (tensors or {}).items():
        _add(writer, name, tensor, F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _stored(module: str, weight: torch.Tensor, config: PretrainedConfig) -> torch.Tensor:
    """A weight as the converter stores it."""
    if weight.ndim == 1:
        return weight + ADDED.get(config.model_type, 0.0)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(module)
    if heads and config.model_type in PERMUTED:
        return weight.view(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
    return weight


def _split(name: str, weight: torch.Tensor) -> Iterator[tuple[str, str, torch.Tensor]]:
    """A parameter's module, the last part of its name, and the weight; gates apart from what they gate."""
    stem, _, suffix = name.rpartition(".")
    if suffix == "gate_up_proj":
        gate, up = weight.chunk(2, 1)
        yield f"{stem}.gate_proj", "weight", gate
        yield f"{stem}.up_proj", "weight", up
    elif suffix == "down_proj":
        yield name, "weight", weight
    else:
        yield stem, suffix, weight


def rounded(model: PreTrainedModel, kind: GGMLQuantizationType) -> PreTrainedModel:
    """The model with its matrices as read from a file of this type, in bfloat16."""
    with torch.no_grad():
        for parameter in model.parameters():
            weight = parameter.float()
            if parameter.ndim > 1:
                weight = torch.from_numpy(dequantize(quantize(weight.numpy(), kind), kind))
            parameter.copy_(weight.to(torch.bfloat16))
    return model


def _add(writer: GGUFWriter, name: str, tensor: torch.Tensor, kind: GGMLQuantizationType) -> None:
    numbers = np.ascontiguousarray(tensor.numpy())
    writer.add_tensor(name, numbers if kind == F32 else quantize(numbers, kind), raw_dtype=kind)


def _write_tokens(writer: GGUFWriter) -> None:
    """A vocabulary of letters with one merge, as of a byte-level BPE."""
    words = ["<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz", "he"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([3] + [1] * (len(words) - 1))
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
