"""Merging the backbone in a stream: one base tensor and one task vector in memory at a time."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from merge.checkpoint import Checkpoint, CheckpointWriter, TensorSpec, copy_settings
from merge.methods import BoundMethod, TaskVectors


def write_backbone(
    directory: Path,
    base: Checkpoint,
    fine_tunes: Mapping[str, Checkpoint],
    method: BoundMethod,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
    on_tensor: Callable[[], None] = lambda: None,
) -> None:
    """Merge fine-tunes and write the result as a Hugging Face directory, with the base's config and tokenizer.

    The outcome depends on neither the order of `fine_tunes` nor the sizes of their shards.

    Args:
        directory: an existing, empty directory.
        base: θ₀.
        fine_tunes: θ_k by name, compatible with the base.
        method: (name, base tensor, task vectors) to merged tensor.
        dtype: arithmetic.
        out_dtype: stored; None: each tensor in the base's own.
        on_tensor: called after each tensor.

    Raises:
        CheckpointError: a tensor holds values that are not finite, or the merged one does.
    """
    specs = [TensorSpec(name, out_dtype or info.dtype, info.shape) for name, info in base.tensors.items()]
    with CheckpointWriter(directory, specs) as writer:
        for name in writer.order:
            origin = base.tensor(name, dtype)
            vectors = _vectors(name, origin, fine_tunes, dtype)
            writer.write(name, method(name, origin, vectors))
            on_tensor()
    copy_settings(base.path, directory)
    if out_dtype is not None:
        _declare(directory / "config.json", out_dtype)


def _vectors(name: str, origin: Tensor, fine_tunes: Mapping[str, Checkpoint], dtype: torch.dtype) -> TaskVectors:
    return TaskVectors(list(fine_tunes), lambda task: fine_tunes[task].tensor(name, dtype) - origin)


def _declare(path: Path, dtype: torch.dtype) -> None:
    """Make config.json say the stored dtype, under whichever of its two historical keys it uses."""
    config = json.loads(path.read_bytes())
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2) + "\n")
