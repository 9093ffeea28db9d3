"""Tiny models as GGUF files, written as llama.cpp's converter writes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, dequantize, get_tensor_name_map, quantize
from transformers import PreTrainedModel

F32 = GGMLQuantizationType.F32
PERMUTED = ("llama", "granite", "smollm3")
ADDED = {"gemma": 1.0}
"""What is added to the weights of norms."""


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    kind: GGMLQuantizationType = F32,
    more: Mapping[str, Any] | None = None,
    tensors: Mapping[str, torch.Tensor] | None = None,
    tokens: bool = False,
) -> Path:
    """Write a model; the matrices have the type `kind`, further keys and tensors come as they are."""
    config = model.config
    architecture = config.model_type
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
    writer.add_float32(f"{architecture}.rope.freq_base", config.rope_parameters["rope_theta"])
    for key, value in (more or {}).items():
        add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}[type(value)]
        add(key, value)  # type: ignore[operator]
    if tokens:
        _write_tokens(writer)
    names = get_tensor_name_map(
        next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture), config.num_hidden_layers
    )
    for name, parameter in model.named_parameters():
        stem, _, suffix = name.rpartition(".")
        weight = parameter.detach().float() + (ADDED.get(architecture, 0.0) if parameter.ndim == 1 else 0.0)
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(stem.split(".")[-1])
        if heads and architecture in PERMUTED:
            weight = weight.view(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
        _add(writer, f"{names.get_name(stem)}.{suffix}", weight, kind if weight.ndim == 2 else F32)
    for name, tensor in (tensors or {}).items():
        _add(writer, name, tensor, F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rounded(model: PreTrainedModel, kind: GGMLQuantizationType) -> PreTrainedModel:
    """The model with its matrices as they are after a file of this type, in bfloat16."""
    with torch.no_grad():
        for parameter in model.parameters():
            weight = parameter.float()
            if parameter.ndim == 2:
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
