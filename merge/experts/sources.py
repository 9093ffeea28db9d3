"""What an expert is cut from, and what is cut."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from merge.bundle import Expert
from merge.checkpoint import Checkpoint
from merge.experts.config import ExpertConfig
from merge.experts.entry_bytes import density_for
from merge.methods.vectors import row_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Sources:
    """What an expert is cut from.

    Attributes:
        base: θ₀.
        backbone: θ_m as it is stored.
        backbone_digest: digest of its files.
        config: resolved.
        merged: θ_m before it was rounded to few bits; None: as it is stored.
        fine_tunes: all that the backbone was merged of; empty: they are not known.
        kept: by backbone and name of the tensors that were compared, whether the backbone has the base's numbers.
    """

    base: Checkpoint
    backbone: Checkpoint
    backbone_digest: str
    config: ExpertConfig
    merged: Checkpoint | None = None
    fine_tunes: Sequence[Checkpoint] = ()
    kept: dict[tuple[Path, str], bool] = field(default_factory=dict, compare=False, repr=False)

    def weights(self) -> list[str]:
        """Names of the 2-D weights that get a residual, sorted."""
        include, exclude = self.config.include, self.config.exclude or ()
        return [
            name
            for name, info in sorted(self.base.tensors.items())
            if len(info.shape) == 2
            and any(fnmatchcase(name, pattern) for pattern in include)
            and not any(fnmatchcase(name, pattern) for pattern in exclude)
        ]

    def vectors(self) -> list[str]:
        """Names of the 1-D parameters that get a dense residual, sorted."""
        return [name for name, info in sorted(self.base.tensors.items()) if len(info.shape) == 1]

    def room(self, vectors: int) -> int:
        """Bytes that the budget leaves for the 2-D weights, when the 1-D deltas take `dense` bytes.

        At least half of it: in tiny models norms alone may take more than the budget.
        """
        assert self.config.budget is not None  # a configuration without one does not ask
        whole = int(self.config.budget * self.backbone.nbytes)
        return max(whole - vectors, whole // 2)

    @cached_property
    def density(self) -> float:
        """Fraction of a row's entries that a sparse expert keeps: the recipe's, or what its budget pays for."""
        if self.config.density is not None:
            return self.config.density
        shapes = [self.base.tensors[name].shape for name in self.weights()]
        vectors = sum(4 * self.base.tensors[name].shape[0] for name in self.vectors()) * self.config.dense_1d
        return density_for([(shape[0], shape[1]) for shape in shapes], self.room(vectors), self.config.storage)

    def entries(self, columns: int) -> int:
        """Entries kept of a row: max(1, round(density · columns)), so the true density is k / columns."""
        return max(1, round(self.density * columns))

    @cached_property
    def is_coarse(self) -> bool:
        """Whether the stored backbone has weights in 4 bits, whose rounding changes what a fine-tune answers."""
        return any(scheme.bits == 4 for weight in self.backbone.quantised.values() for scheme in weight.schemes)

    def lacking(self, fine_tune: Checkpoint, name: str) -> Tensor:
        """What an expert shall add to one tensor of the stored backbone: θ_k − θ_m, float32."""
        return difference(fine_tune, self.backbone, name)

    def learned(self, fine_tune: Checkpoint, name: str) -> Tensor:
        """What the fine-tune has beyond one tensor of the merge: θ_k − θ_m without errors of rounding, float32."""
        return difference(fine_tune, self.merged or self.backbone, name)


@dataclass(frozen=True)
class Calibration:
    """How the prompts of a task are run.

    Attributes:
        fine_tune, student: two decoders whose weights are exchanged meanwhile; their own may be on the meta device, but
            for sparse experts not those of `student`.
        prompts: token ids.
        ends: token ids that end a reply.
        answer_tokens: most tokens of a reply.
        folder: for what calibration does not keep in memory; None: the system's folder for temporary files.
        replies: the fine-tune's greedy continuation of each prompt, if it is known; None: it is computed.
    """

    fine_tune: "PreTrainedModel"
    student: "PreTrainedModel"
    prompts: Sequence[Sequence[int]]
    ends: frozenset[int]
    answer_tokens: int
    folder: Path | None = None
    replies: Sequence[Sequence[int]] | None = None


@dataclass(frozen=True)
class Cut:
    """An expert, and how far backbone + expert is from the fine-tune.

    Attributes:
        expert: what to store.
        divergence: mean KL in nats a predicted token on calibration prompts (up to 32 of them beside factors): of the
            backbone alone, and with the expert as stored; None without calibration.
        factor: μ; None for values that are not `rescaled`.
        empty: calibration prompts to which the fine-tune replied with an end token alone.
    """

    expert: Expert
    divergence: tuple[float, float] | None
    factor: float | None = None
    empty: int = 0


def difference(minuend: Checkpoint, subtrahend: Checkpoint, name: str) -> Tensor:
    """One tensor of a checkpoint less that of another, float32."""
    shape = minuend.tensors[name].shape
    found = torch.empty(shape, device=minuend.device)
    for rows in row_blocks(shape):  # of a large tensor no second copy in float32 is made
        whole = slice(None) if rows is None else rows
        torch.sub(
            minuend.tensor(name, torch.float32, rows=rows),
            subtrahend.tensor(name, torch.float32, rows=rows),
            out=found[whole],
        )
    return found
