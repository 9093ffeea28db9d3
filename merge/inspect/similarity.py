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
    """Cosines of the experts' sparse residuals, and the share of entries that they have in common.

    Semantics: overlap_ij = |S_i ∩ S_j| / min(|S_i|, |S_j|), S the places of entries that are not 0

    Memory: one dense matrix beside the experts.
    """
    names = sorted(experts)
    gram = torch.zeros(len(names), len(names), dtype=torch.float64)
    shared = torch.zeros_like(gram)
    for key in sorted({key for expert in experts.values() for key in expert.sparse}):
        deltas = {name: experts[name].sparse[key] for name in names if key in experts[name].sparse}
        columns = 1 + max(int(delta.index.to(torch.int64).max()) for delta in deltas.values())
        for i, name in enumerate(names):
            if name not in deltas:
                continue
            dense = deltas[name].dense(columns)
            for j, other in enumerate(names[: i + 1]):
                if other in deltas:
                    numbers = deltas[other].numbers
                    found = dense.gather(1, deltas[other].index.to(torch.int64))
                    gram[i, j] += float((found * numbers).sum(dtype=torch.float64))
                    shared[i, j] += int(((found != 0) & (numbers != 0)).sum())
    overlap = shared / torch.minimum(shared.diagonal()[:, None], shared.diagonal()[None, :]).clamp_min(1)
    return PairTable(tuple(names), _rows(_normalised(gram))), PairTable(tuple(names), _rows(overlap))


def _normalised(gram: Tensor) -> Tensor:
    length = gram.diagonal().clamp_min(0).sqrt()
    return gram / (length[:, None] * length[None, :]).clamp_min(torch.finfo(torch.float64).tiny)


def _rows(lower: Tensor) -> tuple[tuple[float, ...], ...]:
    whole = lower.tril() + lower.tril(-1).T
    return tuple(tuple(round(number, 6) for number in row) for row in whole.tolist())
