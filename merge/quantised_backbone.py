"""Storing a merged backbone in 8 or 4 bits."""

import json
from pathlib import Path

import torch
from torch import Tensor

from merge.bundle.quantised import (
    INT8,
    PACKED,
    PARTS,
    SCALE,
    SCHEMES,
    SHAPE,
    is_embedding,
    packed_tensors,
    quantise,
    write_quantisation,
)
from merge.bundle.quantised.packing import packed_columns
from merge.checkpoint import SHARD_BYTES, Checkpoint, CheckpointWriter, TensorInfo, TensorSpec, copy_settings


def write_quantised(
    directory: Path,
    merged: Checkpoint,
    storage: str,
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Round a backbone and write it in compressed-tensors' format `pack-quantized`.

    Args:
        directory: an existing, empty directory.
        merged: the backbone as it was merged, in float32.
        storage: int8 or int4, of linear weights. The embedding and the head are rounded to 8 bits in both and stored
            multiplied out, since transformers loads no packed embeddings. 1-D parameters stay as they are.
        dtype: of what is not rounded, and what config.json declares.
        shard_bytes: most bytes of a file.

    Raises:
        CheckpointError: a tensor cannot be read.
    """
    rounded = {name: info for name, info in merged.tensors.items() if _is_rounded(info) and not is_embedding(name)}
    specs = [TensorSpec(name, info.dtype, info.shape) for name, info in merged.buffers.items()]
    specs += [TensorSpec(name, dtype, info.shape) for name, info in merged.tensors.items() if name not in rounded]
    scheme = SCHEMES[storage]
    for name, info in rounded.items():
        rows, columns = info.shape
        specs += [
            TensorSpec(name + PACKED, torch.int32, (rows, packed_columns(columns, scheme.bits))),
            TensorSpec(name + SCALE, torch.bfloat16, (rows, scheme.scales(columns))),
            TensorSpec(name + SHAPE, torch.int64, (2,)),
        ]
    scales: dict[str, Tensor] = {}

    def part(weight: str, name: str) -> Tensor:
        """One of a weight's tensors. Scales, which are small, wait for their turn from when the integers are made."""
        if name == weight + SHAPE:
            return torch.tensor(rounded[weight].shape)
        if name in scales:
            return scales.pop(name)
        found = packed_tensors(weight, quantise(merged.tensor(weight, torch.float32), scheme))
        if name == weight + PACKED:
            scales[weight + SCALE] = found[weight + SCALE]
        return found[name]

    # Not flushed here: the bundle is, as a whole.
    with CheckpointWriter(directory, specs, shard_bytes, flush=False) as writer:
        for name in writer.order:
            weight = next((name.removesuffix(suffix) for suffix in PARTS if name.endswith(suffix)), name)
            if weight in rounded:
                writer.write(name, part(weight, name))
            elif is_embedding(name) and _is_rounded(merged.tensors[name]):
                writer.write(name, quantise(merged.tensor(name, torch.float32), INT8).dequantised(dtype))
            else:
                writer.write(name, merged.tensor(name))
    copy_settings(merged.path, directory)
    path = directory / "config.json"
    config = json.loads(path.read_bytes())
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(write_quantisation(config, storage), indent=2) + "\n")


def _is_rounded(info: TensorInfo) -> bool:
    return len(info.shape) == 2 and info.name.endswith(".weight")
