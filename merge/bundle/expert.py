"""One expert on disk: a sparse residual against one particular backbone, in rows of equal length (ELL).

For each 2-D weight `P` of shape [N, K] the file holds `P.index` uint16 [N, k] (int32 where K > 65,536), column numbers
ascending within a row, and `P.value` bfloat16 [N, k]. A row with fewer than k entries ends in entries of value 0 that
repeat its last column. A 1-D parameter `P` has `P.delta`, dense, float32. The effective weight is always a sum:
W_eff = W_backbone + E.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from merge.bundle.errors import BundleError
from merge.bundle.files import replaced

FORMAT_VERSION = 1
# One key that holds JSON: safetensors writes several keys in an order that changes from run to run, and an expert's
# identity is the digest of its file.
HEADER_KEY = "overtone"
INDEX_DTYPES = (torch.uint16, torch.int32)


@dataclass(frozen=True)
class SparseDelta:
    """Residual of one 2-D weight.

    Attributes:
        index: [N, k] uint16 or int32, column numbers, ascending within a row.
        value: [N, k] bfloat16, what is added there.
    """

    index: Tensor
    value: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of both tensors."""
        return self.index.nbytes + self.value.nbytes

    @property
    def nnz(self) -> int:
        """Entries that are not zero."""
        return int(torch.count_nonzero(self.value))

    def dense(self, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The residual as a dense [N, columns] matrix."""
        out = torch.zeros(self.index.shape[0], columns, dtype=dtype)
        return out.scatter_add_(1, self.index.to(torch.int64), self.value.to(dtype))


@dataclass(frozen=True)
class Expert:
    """All residuals of one task.

    Attributes:
        name: the task's name, which is how requests ask for it.
        backbone_digest: digest of the backbone's weights that the residuals were cut against.
        density: requested fraction of kept entries, 0 to 1.
        sparse: residual of each 2-D weight, by the weight's Hugging Face name.
        dense: [n] float32 delta of each 1-D parameter, by its Hugging Face name.
        metadata: free text that travels along (how the expert was cut).
    """

    name: str
    backbone_digest: str
    density: float
    sparse: Mapping[str, SparseDelta]
    dense: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def nnz(self) -> int:
        """Entries that are not zero, dense deltas included."""
        return sum(delta.nnz for delta in self.sparse.values()) + sum(
            int(torch.count_nonzero(delta)) for delta in self.dense.values()
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(delta.nbytes for delta in self.sparse.values()) + sum(delta.nbytes for delta in self.dense.values())


def write_expert(path: Path, expert: Expert) -> None:
    """Write an expert file; it appears whole or not at all.

    Raises:
        BundleError: where a tensor breaks the format (see the module's first lines).
    """
    tensors: dict[str, Tensor] = {}
    for name, sparse in expert.sparse.items():
        _check_sparse(name, sparse, path)
        tensors[f"{name}.index"] = sparse.index.contiguous()
        tensors[f"{name}.value"] = sparse.value.contiguous()
    for name, dense in expert.dense.items():
        _check_dense(name, dense, path)
        tensors[f"{name}.delta"] = dense.contiguous()
    if not tensors:
        raise BundleError(f"expert {expert.name!r} holds no residual at all: nothing to write to {path}")
    header = {
        "format_version": FORMAT_VERSION,
        "task": expert.name,
        "backbone_digest": expert.backbone_digest,
        "density": expert.density,
        "metadata": dict(sorted(expert.metadata.items())),
    }
    with replaced(path) as partial:
        save_file(tensors, partial, metadata={HEADER_KEY: json.dumps(header)})


def read_expert(path: Path, backbone_digest: str | None = None) -> Expert:
    """Read and validate an expert file.

    Args:
        path: the file.
        backbone_digest: where given, the backbone the expert must have been cut against.

    Raises:
        BundleError: missing, damaged, another format version or backbone, columns out of order, values not finite.
    """
    if not path.is_file():
        raise BundleError(f"no expert file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path} is not a readable safetensors file: {error}") from error
    if text is None:
        raise BundleError(f"{path} is no expert file: its safetensors metadata lacks the key {HEADER_KEY!r}")
    try:
        header = json.loads(text)
        version, name, cut_against = int(header["format_version"]), str(header["task"]), str(header["backbone_digest"])
        density, metadata = float(header["density"]), {str(k): str(v) for k, v in header["metadata"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{path} has a damaged expert header: {type(error).__name__}: {error}") from error
    if version != FORMAT_VERSION:
        raise BundleError(f"{path} has expert format {version}; this version reads {FORMAT_VERSION}")
    if backbone_digest is not None and cut_against != backbone_digest:
        raise BundleError(
            f"expert {name!r} was cut against backbone {cut_against[:12]}, not against {backbone_digest[:12]}: "
            "merge it again for this backbone"
        )
    sparse, dense = _assemble(tensors, path)
    return Expert(name, cut_against, density, sparse, dense, metadata)


def _assemble(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, SparseDelta], dict[str, Tensor]]:
    sparse: dict[str, SparseDelta] = {}
    dense: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name, _, kind = key.rpartition(".")
        if kind == "index":
            if f"{name}.value" not in tensors:
                raise BundleError(f"{path} has {key} without {name}.value")
            sparse[name] = SparseDelta(tensor, tensors[f"{name}.value"])
            _check_sparse(name, sparse[name], path)
        elif kind == "delta":
            dense[name] = tensor
            _check_dense(name, tensor, path)
        elif kind != "value" or f"{name}.index" not in tensors:
            raise BundleError(
                f"{path} has a tensor {key!r} that is no part of an expert (.index with .value, or .delta)"
            )
    return sparse, dense


def _check_sparse(name: str, delta: SparseDelta, path: Path) -> None:
    index, value = delta.index, delta.value
    if index.ndim != 2 or index.shape != value.shape:
        raise BundleError(
            f"{path}: {name}.index is {list(index.shape)} and .value {list(value.shape)}; both must be the same [N, k]"
        )
    if index.dtype not in INDEX_DTYPES or value.dtype != torch.bfloat16:
        raise BundleError(
            f"{path}: {name} has dtypes {index.dtype} and {value.dtype}; they must be uint16 or int32, and bfloat16"
        )
    if not bool(torch.isfinite(value).all()):
        raise BundleError(f"{path}: {name}.value holds NaN or infinity")
    step = index.to(torch.int64).diff(dim=1)
    repeats_a_column = (step == 0) & (value[:, 1:] != 0)
    if bool((step < 0).any()) or bool(repeats_a_column.any()):
        raise BundleError(f"{path}: the columns in {name}.index do not ascend within each row")
    if index.dtype == torch.int32 and bool((index < 0).any()):
        raise BundleError(f"{path}: {name}.index holds a negative column")


def _check_dense(name: str, delta: Tensor, path: Path) -> None:
    if delta.ndim != 1 or delta.dtype != torch.float32:
        raise BundleError(f"{path}: {name}.delta is {delta.dtype} {list(delta.shape)}; it must be float32 and 1-D")
    if not bool(torch.isfinite(delta).all()):
        raise BundleError(f"{path}: {name}.delta holds NaN or infinity")
