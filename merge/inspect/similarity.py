"""How alike residuals or task vectors are: cosines, and how many entries experts share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merge.bundle import Expert


@dataclass(frozen=True)
class PairTable:
    """A number for each pair of names, symmetric.

    Attributes:
        names: rows and columns.
        values: one row a name.
    """

    names: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]


def cosines(names: Sequence[str], matrices: Sequence[str], read: Callable[[str, str], Tensor]) -> PairTable:
    """Cosines between sets of matrices, each set taken as one long vector.

    Args:
        names: of the sets.
        matrices: names of their members.
        read: (set, member) to a tensor; those of one member are in memory at once.
    """
    gram = torch.zeros(len(names), len(names), dtype=torch.float64)
    for matrix in matrices:
        rows = torch.stack([read(name, matrix).flatten() for name in names])
        gram += (rows @ rows.T).to(torch.float64)
    return PairTable(tuple(names), _rows(_normalised(gram)))


def compare_experts(experts: Mapping[str, Expert]) -> tuple[PairTable, PairTable]:
    """Cosines of what the experts add to 2-D weights, and the share of sparse entries that they have in common.

    Semantics: overlap_ij = |S_i ∩ S_j| / min(|S_i|, |S_j|), S the places of sparse entries that are not 0

    Memory: one dense matrix beside the experts.
    """
    names = sorted(experts)
    gram = torch.zeros(len(names), len(names), dtype=torch.float64)
    shared = torch.zeros_like(gram)
    for key in sorted({key for expert in experts.values() for key in expert.matrices}):
        columns = max(_columns(expert, key) for expert in experts.values())
        for i, name in enumerate(names):
            if key not in experts[name].matrices:
                continue
            dense = dense_residual(experts[name], key, columns)
            for j, other in enumerate(names[: i + 1]):
                gram[i, j] += _product(dense, experts[other], key)
                if key in experts[name].sparse and key in experts[other].sparse:
                    shared[i, j] += _in_common(experts[name], experts[other], key, columns)
    overlap = shared / torch.minimum(shared.diagonal()[:, None], shared.diagonal()[None, :]).clamp_min(1)
    return PairTable(tuple(names), _rows(_normalised(gram))), PairTable(tuple(names), _rows(overlap))


def dense_residual(expert: Expert, key: str, columns: int | None = None) -> Tensor:
    """What an expert adds to one 2-D weight, [N, columns] float32; None: as many columns as its parts tell."""
    return expert.matrix(key, columns or _columns(expert, key))


def _columns(expert: Expert, key: str) -> int:
    if key in expert.low_rank:
        return expert.low_rank[key].shape[1]
    return 1 + int(expert.sparse[key].index.to(torch.int64).max()) if key in expert.sparse else 0


def _product(dense: Tensor, expert: Expert, key: str) -> float:
    """⟨dense, E⟩, E what the expert adds, which is not made dense."""
    total = 0.0
    if key in expert.sparse:
        found = dense.gather(1, expert.sparse[key].index.to(torch.int64))
        total += float((found * expert.sparse[key].numbers).sum(dtype=torch.float64))
    if key in expert.low_rank:
        part = expert.low_rank[key]
        left = part.b.to(torch.float32) * part.scale
        total += float((left.T @ dense * part.a.to(torch.float32)).sum(dtype=torch.float64))
    return total


def _in_common(one: Expert, other: Expert, key: str, columns: int) -> int:
    numbers = other.sparse[key].numbers
    found = one.sparse[key].dense(columns).gather(1, other.sparse[key].index.to(torch.int64))
    return int(((found != 0) & (numbers != 0)).sum())


def _normalised(gram: Tensor) -> Tensor:
    length = gram.diagonal().clamp_min(0).sqrt()
    return gram / (length[:, None] * length[None, :]).clamp_min(torch.finfo(torch.float64).tiny)


def _rows(lower: Tensor) -> tuple[tuple[float, ...], ...]:
    whole = lower.tril() + lower.tril(-1).T
    return tuple(tuple(round(number, 6) for number in row) for row in whole.tolist())
