"""Bundles to export from: a tiny random Llama with one expert."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from merge.bundle import (
    Bundle,
    BundleWriter,
    Expert,
    LowRankDelta,
    ManifestFields,
    SparseDelta,
    backbone_digest,
    open_bundle,
    quantise_rows,
    write_expert,
)
from tests.merge.tiny import save_tiny

EMBEDDING = "model.embed_tokens.weight"
NORMS = ("model.layers.1.input_layernorm.weight", "model.norm.weight")
UP = "model.layers.0.mlp.up_proj.weight"
WEIGHTS = (UP, "model.layers.1.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight")


@dataclass(frozen=True)
class Exported:
    """A bundle and the model that its expert `one` stands for, in float32."""

    bundle: Bundle
    model: LlamaForCausalLM


def factors(
    rows: int, columns: int, rank: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0, scale: float | None = None
) -> LowRankDelta:
    """Random factors; the scales of the directions differ, unless one is given for all."""
    generator = torch.Generator().manual_seed(seed)
    spread = 40.0 if dtype == torch.int8 else 1.0
    a, b = (spread * torch.randn(shape, generator=generator) for shape in ((rank, columns), (rows, rank)))
    scales = torch.rand(rank, generator=generator) + 0.5 if scale is None else torch.full((rank,), scale)
    return LowRankDelta(a.to(dtype), b.to(dtype), scales * 0.125 / spread**2)


def write(
    path: Path,
    dtype: torch.dtype = torch.float32,
    weights: Sequence[str] = WEIGHTS,
    storage: str = "bf16",
    low_rank: Mapping[str, LowRankDelta] | None = None,
    norms: Sequence[str] = NORMS,
    tied: bool = True,
) -> Exported:
    generator = torch.Generator().manual_seed(0)
    sparse, dense, low_rank = {}, {}, low_rank or {}
    with BundleWriter(path) as staging:
        save_tiny(staging.path / "backbone", dtype=dtype, tied=tied)
        model = LlamaForCausalLM.from_pretrained(staging.path / "backbone", dtype=torch.float32)
        parameters = dict(model.named_parameters())
        for name in weights:
            rows, columns = parameters[name].shape
            index = torch.rand(rows, columns, generator=generator).topk(3, 1).indices.sort(1).values.to(torch.uint16)
            value = 0.3 * torch.randn(rows, 3, generator=generator)
            sparse[name] = (
                SparseDelta(index, *quantise_rows(value)) if storage == "int8" else SparseDelta(index, value.bfloat16())
            )
        for name in norms:
            dense[name] = 0.2 * torch.randn(parameters[name].shape, generator=generator)
        digest = backbone_digest(staging.path / "backbone")
        write_expert(
            staging.path / "experts" / "one.safetensors", Expert("one", digest, 0.1, sparse, dense, low_rank=low_rank)
        )
        staging.finish(ManifestFields(name="tiny"))
    with torch.no_grad():
        for name, delta in sparse.items():
            parameters[name] += delta.dense(parameters[name].shape[1])
        for name, part in low_rank.items():
            parameters[name] += part.dense()
        for name, shift in dense.items():
            parameters[name] += shift
    return Exported(open_bundle(path), model.eval().requires_grad_(False))
