"""Settings that a GGUF file gives otherwise than config.json, or that llama.cpp knows of an architecture by itself."""

from collections.abc import Mapping
from typing import Any

import torch
from gguf import dequantize

from merge.checkpoint import CheckpointError
from merge.gguf.metadata import Metadata

LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
"""Phi-3's factors of each wavelength, in contexts beyond the original length and up to it."""

LOCAL_BASE = 10000.0
"""The rope's base in layers with a sliding window of Gemma 3."""

PATTERN = 6
"""Every sixth layer of Gemma 3 looks at the whole context."""

Config = Mapping[str, Any]


def phi3(metadata: Metadata, config: Config) -> dict[str, Any]:
    """A part of each head is rotated; longrope's factors are tensors; a window of 0 is none."""
    own = metadata.own()
    rotated, width = own.get("rope.dimension_count", config["head_dim"]), config["head_dim"]
    found: dict[str, Any] = {
        "partial_rotary_factor": rotated / width,
        "sliding_window": own.get("attention.sliding_window") or None,
        "original_max_position_embeddings": own.get(
            "rope.scaling.original_context_length", config["max_position_embeddings"]
        ),
    }
    if LONG in metadata.tensors and SHORT in metadata.tensors:
        scaling: dict[str, Any] = {"rope_type": "longrope"}
        scaling |= {"long_factor": _numbers(metadata, LONG), "short_factor": _numbers(metadata, SHORT)}
        if "rope.scaling.attn_factor" in own:
            scaling["attention_factor"] = float(f"{own['rope.scaling.attn_factor']:.7g}")
        found["rope_scaling"] = scaling
    return found


def gemma2(_metadata: Metadata, config: Config) -> dict[str, Any]:
    """Scores are scaled by the size of a head, in 27B by the hidden size for each head."""
    return {"query_pre_attn_scalar": _scaled_by(config, largest=46)}


def gemma3(metadata: Metadata, config: Config) -> dict[str, Any]:
    """Which layers have a window, their rope, and as for Gemma 2 the scale of scores.

    Raises:
        CheckpointError: no sliding window, or other layers have it.
    """
    own = metadata.own()
    pattern = own.get("attention.sliding_window_pattern", PATTERN)
    if not own.get("attention.sliding_window") or pattern != PATTERN:
        raise CheckpointError(
            f"{metadata.file} must have a sliding window in all but every sixth layer: give the Hugging Face checkpoint"
        )
    kinds = ("full_attention", "sliding_attention")
    return {
        "query_pre_attn_scalar": _scaled_by(config, largest=62),
        "rope_local_base_freq": float(f"{own.get('rope.freq_base_swa', LOCAL_BASE):.7g}"),
        "layer_types": [kinds[bool((layer + 1) % PATTERN)] for layer in range(config["num_hidden_layers"])],
    }


def _scaled_by(config: Config, largest: int) -> int:
    """The number whose root divides the scores, from the number of layers, as in llama.cpp."""
    if config["num_hidden_layers"] == largest:
        return int(config["hidden_size"]) // int(config["num_attention_heads"])
    return int(config["head_dim"])


def _numbers(metadata: Metadata, name: str) -> list[float]:
    tensor = metadata.tensors[name]
    factors = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).flatten()
    return [float(f"{factor:.7g}") for factor in factors.tolist()]
