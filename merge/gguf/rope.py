"""Rotary frequencies of a GGUF file's model, as config.json writes them."""

import math
from typing import Any

import torch
from gguf import dequantize
from torch import Tensor

from merge.checkpoint import CheckpointError
from merge.gguf.metadata import Metadata

FACTORS = "rope_freqs.weight"
"""What each frequency is divided by; llama.cpp's converter computes it for Llama 3.1 and later."""

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What all published models of rope type llama3 have."""


def rope_parameters(metadata: Metadata, width: int) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of config.json.

    Args:
        metadata: the file's.
        width: of a head, all of which is rotated.

    Raises:
        CheckpointError: a kind of scaling that is not supported, or factors that are not those of rope type llama3.
    """
    own = metadata.own()
    base = float(f"{own.get('rope.freq_base', 10000.0):.7g}")
    found: dict[str, Any] = {"rope_theta": base}
    kind = own.get("rope.scaling.type", "none")
    if kind not in {"none", "linear", "yarn"}:
        raise CheckpointError(f"{metadata.file} has the rope scaling {kind!r}; none, linear and yarn can be read")
    if kind != "none":
        factor = float(own.get("rope.scaling.factor", 1.0))
        found["rope_scaling"] = {"rope_type": kind, "factor": factor}
        if kind == "yarn" and "rope.scaling.original_context_length" in own:
            found["rope_scaling"]["original_max_position_embeddings"] = own["rope.scaling.original_context_length"]
    if FACTORS in metadata.tensors:
        tensor = metadata.tensors[FACTORS]
        factors = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).flatten()
        found["rope_scaling"] = {"rope_type": "llama3", "factor": round(float(factors.max()), 4), **LLAMA3}
        expected = llama3_factors(base, width, float(factors.max()))
        if kind != "none" or factors.shape != expected.shape or not torch.allclose(factors, expected, rtol=1e-3):
            raise CheckpointError(
                f"{metadata.file}: {FACTORS} are not the factors of rope type llama3: give the Hugging Face checkpoint"
            )
    return found


def llama3_factors(base: float, width: int, factor: float) -> Tensor:
    """What rope type llama3 divides each frequency by, [width / 2].

    Semantics: 1 for wavelengths below c / 4, `factor` for those above c, 1 / ((1 − s) / factor + s) between with
    s = (c / wavelength − 1) / 3, and c = 8192 (https://arxiv.org/abs/2407.21783).
    """
    low, high, context = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"], 8192
    found = []
    for place in range(0, width, 2):
        wavelength = 2 * math.pi * base ** (place / width)
        smooth = min(1.0, max(0.0, (context / wavelength - low) / (high - low)))
        found.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(found)
