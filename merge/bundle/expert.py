"""One expert on disk: a residual against one particular backbone, in sparse and low-rank parts.

A 2-D weight `P` of shape [N, K] has a sparse part S, a low-rank part or both. The sparse part has rows of equal length
(ELL). With bfloat16 values it is `P.index` uint16 [N, k] (int32 if K > 65,536), column numbers ascending within a
row, and `P.value` bfloat16 [N, k]. A row with fewer than k entries ends in entries of value 0 that repeat its last
column. With 8-bit values it is `P.value` int8 and `P.scale` bfloat16 [N], and the columns either as above or, if
that is smaller, as distances `P.gap` uint8 [M] with `P.value` [M] (`gaps`). The low-rank part is `P.lora_a` [r, K],
`P.lora_b` [N, r] and `P.lora_scale` float32 [r] (`low_rank`). A 1-D parameter `P` has `P.delta`, dense, float32. The
effective weight is always a sum: W_eff = W_backbone + S + B diag(scale) A.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from merge.bundle.errors import BackboneMismatchError, BundleError, MissingFileError
from merge.bundle.expert_header import (
    HEADER_KEY,
    VERSION,
    VERSION_INT8,
    VERSION_LOW_RANK,
    VERSION_SETTINGS,
    WIDEST,
    Header,
)
from merge.bundle.files import replaced
from merge.bundle.gaps import decode_gaps, encode_gaps
from merge.bundle.generation import GenerationSettings
from merge.bundle.low_rank import LOW_RANK_KINDS, LowRankDelta, check_low_rank
from merge.bundle.residual import SparseDelta, check_dense, check_scale, check_sparse, index_dtype
from merge.bundle.tensor_file import read_tensor_file


@dataclass(frozen=True)
class Expert:
    """All residuals of one task.

    Attributes:
        name: the task's name, which is how requests ask for it.
        backbone_digest: digest of the backbone's weights that the residuals were cut against.
        density: requested fraction of kept entries in the sparse parts, 0 to 1; 0 if there is none.
        sparse: sparse part of a 2-D weight's residual, by the weight's Hugging Face name.
        dense: [n] float32 delta of each 1-D parameter, by its Hugging Face name.
        metadata: free text that travels along (how the expert was cut).
        low_rank: low-rank part of a 2-D weight's residual, by the weight's Hugging Face name.
        settings: what requests of it follow in place of the backbone's.
    """

    name: str
    backbone_digest: str
    density: float
    sparse: Mapping[str, SparseDelta]
    dense: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    low_rank: Mapping[str, LowRankDelta] = field(default_factory=dict)
    settings: GenerationSettings = field(default_factory=GenerationSettings)

    @property
    def nnz(self) -> int:
        """Stored numbers that are not zero (see `entries`)."""
        parts = sum(delta.nnz for delta in self.sparse.values())
        parts += sum(delta.nnz for delta in self.low_rank.values())
        return parts + sum(int(torch.count_nonzero(delta)) for delta in self.dense.values())

    @property
    def entries(self) -> int:
        """Stored numbers: values of all sparse rows, padding included, of low-rank factors, and of dense deltas."""
        parts = sum(delta.index.numel() for delta in self.sparse.values())
        parts += sum(delta.entries for delta in self.low_rank.values())
        return parts + sum(delta.numel() for delta in self.dense.values())

    @property
    def matrices(self) -> tuple[str, ...]:
        """Names of the 2-D weights that have a sparse part, a low-rank part or both, in alphabetical order."""
        return tuple(sorted({*self.sparse, *self.low_rank}))

    def matrix(self, name: str, columns: int) -> Tensor:
        """The residual of a 2-D weight, one of `matrices`: its parts' sum as a dense [N, columns] float32 matrix."""
        if name not in self.low_rank:
            return self.sparse[name].dense(columns)
        dense = self.low_rank[name].dense()
        return dense.add_(self.sparse[name].dense(columns)) if name in self.sparse else dense


def write_expert(path: Path, expert: Expert) -> None:
    """Write an expert file; it appears whole or not at all.

    Raises:
        BundleError: a tensor does not have the format (see the module's docstring).
    """
    tensors: dict[str, Tensor] = {}
    gaps: dict[str, dict[str, int]] = {}
    try:
        for name, sparse in expert.sparse.items():
            check_sparse(name, sparse)
            shape = _add_sparse(tensors, name, sparse)
            if shape is not None:
                gaps[name] = shape
        for name, low_rank in expert.low_rank.items():
            check_low_rank(name, low_rank)
            # Copies: safetensors refuses tensors that share memory, as slices of one decomposition do.
            for kind, tensor in zip(LOW_RANK_KINDS, (low_rank.a, low_rank.b, low_rank.scale), strict=True):
                tensors[f"{name}.{kind}"] = tensor.clone(memory_format=torch.contiguous_format)
        for name, dense in expert.dense.items():
            check_dense(name, dense)
            tensors[f"{name}.delta"] = dense.contiguous()
        _check_parts(expert.sparse, expert.low_rank)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
    if not tensors:
        raise BundleError(f"expert {expert.name!r} holds no residual at all: nothing to write to {path}")
    header: dict[str, Any] = {
        "format_version": VERSION,
        "task": expert.name,
        "backbone_digest": expert.backbone_digest,
        "density": expert.density,
        "metadata": dict(sorted(expert.metadata.items())),
    }
    if any(delta.scale is not None for delta in expert.sparse.values()):
        header |= {"format_version": VERSION_INT8, "gaps": dict(sorted(gaps.items()))}
    if expert.low_rank:
        header["format_version"] = VERSION_LOW_RANK
    if expert.settings:
        header |= {"format_version": VERSION_SETTINGS, "generation": expert.settings.as_json()}
    with replaced(path) as partial:
        save_file(tensors, partial, metadata={HEADER_KEY: json.dumps(header)})


def read_expert(path: Path, backbone_digest: str | None = None) -> Expert:
    """Read and validate an expert file, as `read_expert_content`, without its digest."""
    return read_expert_content(path, backbone_digest)[1]


def read_expert_content(path: Path, backbone_digest: str | None = None) -> tuple[str, Expert]:
    """Read and validate an expert file.

    Args:
        path: the file.
        backbone_digest: the backbone that the expert must have been cut against; None: it is not checked.

    Returns:
        The content digest (see `expert_digest`) and the expert, both of the same bytes whatever happens to the file.

    Raises:
        MissingFileError, UnreadableFileError: see `read_tensor_file`.
        BackboneMismatchError: the expert was cut against another backbone.
        BundleError: damaged, another format version, columns out of order, values not finite.
    """
    try:
        file = read_tensor_file(path)
    except MissingFileError as error:
        raise MissingFileError(f"no expert file at {path}") from error
    header = Header.parse(file.metadata.get(HEADER_KEY), path)
    if backbone_digest is not None and header.backbone_digest != backbone_digest:
        raise BackboneMismatchError(
            f"expert {header.task!r} was cut against backbone {header.backbone_digest[:12]}, not against "
            f"{backbone_digest[:12]}: merge it again for this backbone"
        )
    try:
        sparse, low_rank, dense = _assemble(file.tensors, header.gaps)
        _check_parts(sparse, low_rank)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
    expert = Expert(
        *(header.task, header.backbone_digest, header.density, sparse, dense, header.metadata),
        low_rank=low_rank,
        settings=header.settings,
    )
    return file.digest, expert


def _add_sparse(tensors: dict[str, Tensor], name: str, delta: SparseDelta) -> dict[str, int] | None:
    """Add a residual's tensors. Returns its header entry if its columns are stored as distances, else None."""
    index, value = delta.index.contiguous(), delta.value.contiguous()
    if delta.scale is not None:
        tensors[f"{name}.scale"] = delta.scale.contiguous()
        width = int(index.to(torch.int64).max()) + 1
        gap, stream = encode_gaps(index, value, width)
        if gap.nbytes + stream.nbytes < index.nbytes + value.nbytes:
            tensors[f"{name}.gap"], tensors[f"{name}.value"] = gap, stream
            return {"width": width, "entries": max(1, int(value.count_nonzero(dim=1).max()))}
    tensors[f"{name}.index"], tensors[f"{name}.value"] = index, value
    return None


def _assemble(
    tensors: Mapping[str, Tensor], gaps: Mapping[str, tuple[int, int]]
) -> tuple[dict[str, SparseDelta], dict[str, LowRankDelta], dict[str, Tensor]]:
    sparse: dict[str, SparseDelta] = {}
    low_rank: dict[str, LowRankDelta] = {}
    dense: dict[str, Tensor] = {}
    used: set[str] = set()
    for key, tensor in tensors.items():
        name, _, kind = key.rpartition(".")
        if kind in {"index", "gap"}:
            value, scale = tensors.get(f"{name}.value"), tensors.get(f"{name}.scale")
            if value is None:
                raise BundleError(f"{key} has no {name}.value")
            delta = SparseDelta(tensor, value, scale) if kind == "index" else _from_gaps(name, tensors, gaps)
            check_sparse(name, delta)
            if name in sparse:
                raise BundleError(f"{name} has both .index and .gap")
            sparse[name] = delta
            used |= {key, f"{name}.value", f"{name}.scale"}
        elif kind == "lora_a":
            low_rank[name] = _low_rank(name, tensors)
            used |= {f"{name}.{part}" for part in LOW_RANK_KINDS}
        elif kind == "delta":
            check_dense(name, tensor)
            dense[name] = tensor
            used.add(key)
    stray = sorted(set(tensors) - used)
    if stray:
        name, _, kind = stray[0].rpartition(".")
        if kind in LOW_RANK_KINDS:
            raise BundleError(f"{stray[0]} has no {name}.lora_a")
        raise BundleError(
            f"the tensor {stray[0]!r} is not part of an expert (.index or .gap with .value, perhaps .scale; .lora_a "
            "with .lora_b and .lora_scale; or .delta)"
        )
    return sparse, low_rank, dense


def _low_rank(name: str, tensors: Mapping[str, Tensor]) -> LowRankDelta:
    for kind in LOW_RANK_KINDS:
        if f"{name}.{kind}" not in tensors:
            raise BundleError(f"{name}.lora_a has no {name}.{kind}")
    delta = LowRankDelta(*(tensors[f"{name}.{kind}"] for kind in LOW_RANK_KINDS))
    check_low_rank(name, delta)
    return delta


def _check_parts(sparse: Mapping[str, SparseDelta], low_rank: Mapping[str, LowRankDelta]) -> None:
    """Check that the two parts of a weight belong to one shape.

    Raises:
        BundleError: they do not.
    """
    for name in sparse.keys() & low_rank.keys():
        index, (rows, columns) = sparse[name].index, low_rank[name].shape
        last = int(index.to(torch.int64).max())
        if index.shape[0] != rows or last >= columns:
            raise BundleError(
                f"{name} has a sparse part of {index.shape[0]} rows and columns to {last}, and a low-rank part for a "
                f"[{rows}, {columns}] weight"
            )


def _from_gaps(name: str, tensors: Mapping[str, Tensor], gaps: Mapping[str, tuple[int, int]]) -> SparseDelta:
    gap, stream, scale = tensors[f"{name}.gap"], tensors[f"{name}.value"], tensors.get(f"{name}.scale")
    if name not in gaps or scale is None:
        raise BundleError(f"{name}.gap has no {'entry in the header' if scale is not None else '.scale'}")
    if gap.ndim != 1 or gap.shape != stream.shape or (gap.dtype, stream.dtype) != (torch.uint8, torch.int8):
        raise BundleError(
            f"{name}.gap is {gap.dtype} {list(gap.shape)} and .value {stream.dtype} {list(stream.shape)}; they must be "
            "uint8 and int8 of the same [M]"
        )
    check_scale(name, scale)
    width, entries = gaps[name]
    if not 1 <= entries <= width <= WIDEST or not len(scale):
        raise BundleError(f"{name} has {len(scale)} rows of {width} columns and {entries} entries, which is impossible")
    try:
        index, value = decode_gaps(gap, stream, len(scale), width, entries)
    except BundleError as error:
        raise BundleError(f"{name}: {error}") from error
    return SparseDelta(index.to(index_dtype(width)), value, scale)
