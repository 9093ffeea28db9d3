"""A model with an adapter, read as if it were a full checkpoint."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from merge.bundle.adapter_config import ADAPTER_CONFIG
from merge.checkpoint import INDEX, SINGLE, Checkpoint, CheckpointError
from merge.lora.adapter import Adapter, LowRank, match_adapter
from merge.lora.config import read_adapter_config


@dataclass(frozen=True)
class AdaptedCheckpoint(Checkpoint):
    """A model with an adapter on it. `path` is the adapter's directory; config and tensors are those of the model.

    Attributes:
        model: the checkpoint beneath.
        adapter: what changes in it.
    """

    model: Checkpoint = field(default_factory=lambda: Checkpoint(Path(), {}, {}))
    adapter: Adapter = field(default_factory=lambda: Adapter({}, {}, {}))

    @property
    def directories(self) -> tuple[Path, ...]:
        """The adapter's, and that of the model beneath."""
        return (self.path, *self.model.directories)

    def tensor(
        self, name: str, dtype: torch.dtype | None = None, check: bool = True, rows: slice | None = None
    ) -> Tensor:
        """Read one tensor and apply the adapter to it.

        Semantics: W + s·B A; transposed weights W + s·(B A)ᵀ; convolutions W + s·Σ_r B[o, r] A[r, …]; with DoRA
        m ∘ (W + s·B A) / ‖W + s·B A‖, the norm that of each output's row.

        The sum is computed in float32, or in `dtype` if that is float64, and rounded once.
        """
        change = self.adapter.changes.get(name)
        if change is None:
            return self._beneath(name, dtype, check, rows)
        if change.magnitude is not None and rows is not None:
            return self.tensor(name, dtype, check)[rows]  # the norms may be those of columns
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        weight = self._beneath(name, wide, check, rows)
        adapted = weight + change.scale * self._product(change, wide, rows or slice(None))
        if change.magnitude is not None:
            adapted = _renormalised(adapted, self._own(change.magnitude, wide), change.transposed)
        return adapted.to(dtype or self.tensors[name].dtype)

    def factors(self, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """What the adapter adds to a 2-D tensor of the model, as a product.

        Returns:
            [N, R] and [R, K] whose product it is, with R = 0 if the adapter leaves the tensor alone. None if the
            change is not such a product: DoRA, a tensor that the adapter replaces, or one that is not 2-D.
        """
        shape = self.tensors[name].shape
        if len(shape) == 2 and name not in self.adapter.replacements and name not in self.adapter.changes:
            sizes = (shape[0], 0), (0, shape[1])
            left, right = (torch.zeros(size, dtype=dtype, device=self.device) for size in sizes)
            return left, right
        found = self.stored_factors(name, dtype)
        if found is None:
            return None
        left, right, scale = found
        return left * scale, right

    def stored_factors(self, name: str, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, float] | None:
        """The factors of a 2-D tensor's change as the adapter's file has them.

        Args:
            name: the tensor's.
            dtype: of the factors; None: the file's.

        Returns:
            left [N, R], right [R, K] and s: s · left @ right is added. None if the adapter does not
            change the tensor, or if the change is not such a product (see `factors`).
        """
        change = self.adapter.changes.get(name)
        if len(self.tensors[name].shape) != 2 or change is None or change.magnitude is not None:
            return None
        if name in self.adapter.replacements:
            return None
        a, b = self._own(change.a, dtype), self._own(change.b, dtype)
        return (a.T, b.T, change.scale) if change.transposed else (b, a, change.scale)

    def on(self, device: torch.device) -> Self:
        """The same model and adapter, whose tensors are read to a device and added there."""
        return replace(self, device=device, model=self.model.on(device))

    def changes(self, name: str) -> bool:
        """Whether the adapter gives a tensor other values than the model has."""
        return name in self.adapter.changes or name in self.adapter.replacements

    def _beneath(self, name: str, dtype: torch.dtype | None, check: bool, rows: slice | None) -> Tensor:
        """What the factors change: the model's tensor, or the one that the adapter has in its place."""
        source = self.adapter.replacements.get(name)
        if source is None:
            return self.model.tensor(name, dtype, check, rows)
        return self._own(source, dtype or self.model.tensors[name].dtype, rows)

    def _product(self, change: LowRank, dtype: torch.dtype, rows: slice) -> Tensor:
        a, b = self._own(change.a, dtype), self._own(change.b, dtype)
        if a.ndim > 2:
            b = b[rows]
            return (b.flatten(1) @ a.flatten(1)).view(b.shape[0], *a.shape[1:])
        return (b @ a[:, rows]).T if change.transposed else b[rows] @ a

    def _own(self, name: str, dtype: torch.dtype | None, rows: slice | None = None) -> Tensor:
        return Checkpoint(self.path, {}, self.adapter.tensors, device=self.device).tensor(name, dtype, rows=rows)


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds a PEFT adapter.

    A full checkpoint in which adapter_config.json was left over, without weights of an adapter, is none.
    """
    if not (directory / ADAPTER_CONFIG).is_file():
        return False
    full = any((directory / name).is_file() for name in (SINGLE, INDEX))
    return not full or any(directory.glob("adapter_model*"))


def open_adapter(directory: Path, model: Checkpoint) -> AdaptedCheckpoint:
    """Open a PEFT LoRA directory on a model.

    Supported: rank and alpha patterns, rsLoRA, DoRA of linear layers, layers stored transposed, embeddings,
    convolutions, `bias`, `modules_to_save`. Everything else is refused by name.

    Raises:
        CheckpointError: no adapter there, or one that would be computed wrongly.
    """
    if not directory.is_dir():
        raise CheckpointError(f"no adapter directory at {directory}")
    config = read_adapter_config(directory)
    return AdaptedCheckpoint(
        path=directory,
        config=model.config,
        tensors=model.tensors,
        buffers=model.buffers,
        model=model,
        adapter=match_adapter(directory, config, model),
    )


def _renormalised(weight: Tensor, magnitude: Tensor, transposed: bool) -> Tensor:
    """DoRA (Liu et al., ICML 2024, arXiv 2402.09353)."""
    rows = 0 if transposed else 1
    scale: Tensor = magnitude.flatten() / torch.linalg.vector_norm(weight, dim=rows)
    return weight * (scale if transposed else scale[:, None])
