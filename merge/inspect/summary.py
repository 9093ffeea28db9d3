"""The summary of a bundle: its experts, their sizes, and their distribution over the layers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch

from merge.bundle import Bundle, Expert, ExpertLayout, read_layout
from merge.checkpoint import Checkpoint, open_checkpoint
from merge.export.dense import check_fits
from merge.inspect.layers import layer_and_kind, rank_lines, said
from merge.inspect.origin import form_in_words, origin
from merge.inspect.similarity import PairTable, compare_experts, dense_residual
from merge.wording import aligned, counted

_DTYPES = {torch.int8: "int8", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True)
class ExpertSummary:
    """One expert.

    Attributes:
        name: its task.
        form: of its 2-D residuals: sparse, low_rank, or both (of one weight, or of different ones); none without any.
        storage: of its values and factors: a dtype, or mixed.
        entries: stored numbers, padding and dense deltas included.
        nnz: stored numbers that are not zero.
        bytes: size of its tensors.
        low_rank_bytes: size of its low-rank parts.
        share: its bytes over the backbone's unquantised bytes, as in a recipe's budget.
        density: entries of its sparse parts over the elements of those weights; 0 without a sparse part.
        ranks: the least and the largest rank of its low-rank parts; None if it has none.
        rank_of: the rank of each weight with a low-rank part.
        cut: how it was made, the metadata of its file; `origin` says it in words.
    """

    name: str
    form: str
    storage: str
    entries: int
    nnz: int
    bytes: int
    low_rank_bytes: int
    share: float
    density: float
    ranks: tuple[int, int] | None
    rank_of: Mapping[str, int]
    cut: Mapping[str, str]


@dataclass(frozen=True)
class ParameterSummary:
    """One parameter that some expert changes; means over the experts that change it.

    Attributes:
        name: its Hugging Face name.
        layer: number of its layer, None outside of the layers.
        kind: its name within the layer, or all of it outside.
        elements: of the backbone's tensor.
        density: stored numbers, of entries and factors, over elements.
        bytes: of the residual's tensors.
        rank: of the low-rank parts; None if no expert has one.
        relative_norm: ‖E‖ / ‖W‖, Frobenius.
    """

    name: str
    layer: int | None
    kind: str
    elements: int
    density: float
    bytes: float
    rank: float | None
    relative_norm: float


@dataclass(frozen=True)
class Inspection:
    """A bundle at a glance.

    Attributes:
        name: the bundle's.
        path: its directory.
        backbone: digest, storage (the dtype of most bytes, or the bits of the linear layers), bytes as stored and
            unquantised, and parameters.
        router: whether it has a router.
        created: time of the merge; of an older bundle, the time of its bundle.json.
        versions: of the libraries that merged it.
        notes: the merger's.
        experts: by name.
        parameters: by layer.
        similarity: cosines of what the experts add to 2-D weights.
        overlap: share of sparse entries that two experts have in common.
        chance_overlap: what it would be if places were drawn at random; 0 if no expert has a sparse part.
    """

    name: str
    path: str
    backbone: Mapping[str, Any]
    router: bool
    created: str
    versions: Mapping[str, str]
    notes: tuple[str, ...]
    experts: tuple[ExpertSummary, ...]
    parameters: tuple[ParameterSummary, ...]
    similarity: PairTable
    overlap: PairTable
    chance_overlap: float

    def as_json(self) -> dict[str, Any]:
        """The document that `--json` prints."""
        return asdict(self)

    def as_text(self) -> str:
        """The table for people. Columns that no expert has a value in are left out."""
        backbone = self.backbone
        lines = [
            f"{self.name}: {counted(len(self.experts), 'expert')}, {'with' if self.router else 'without'} a router",
            f"backbone: {backbone['parameters']:,} parameters, weights in {backbone['storage']}, "
            f"{backbone['bytes']:,} bytes, digest {backbone['digest'][:12]}",
            *self._reference(),
            "",
            *_table(self.experts),
        ]
        ranks = rank_lines({item.name: item.rank_of for item in self.experts})
        if ranks:
            lines += ["", *ranks]
        if len(self.experts) > 1:
            lines += ["", *_extremes(self)]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _reference(self) -> list[str]:
        if self.backbone["storage"] not in {"int4", "int8"}:
            return []
        return [f"experts are compared with its {self.backbone['unquantised_bytes']:,} bytes before quantisation"]


def inspect_bundle(bundle: Bundle) -> Inspection:
    """Read all experts of a bundle and measure them.

    Raises:
        BundleError: an expert cannot be read, or does not fit the backbone.
        CheckpointError: the backbone cannot be read.
    """
    backbone = open_checkpoint(bundle.backbone_dir)
    experts = {name: bundle.read_expert(name) for name in bundle.expert_names}
    for expert in experts.values():
        check_fits(expert, backbone)
    layouts = {name: read_layout(bundle.expert_path(name)) for name in experts}
    manifest = bundle.manifest
    cosine, overlap = compare_experts(experts)
    summaries = tuple(_expert(experts[name], layouts[name], bundle.card(name).bytes, backbone) for name in experts)
    densities = [item.density for item in summaries if item.density]
    return Inspection(
        name=manifest.name,
        path=str(bundle.path),
        backbone={
            "digest": manifest.backbone_digest,
            "storage": _storage(backbone),
            "bytes": manifest.backbone_bytes,
            "unquantised_bytes": backbone.nbytes,
            "parameters": sum(_elements(backbone, name) for name in backbone.tensors),
        },
        router=bundle.router_dir is not None,
        created=manifest.created,
        versions=dict(manifest.versions),
        notes=manifest.notes,
        experts=summaries,
        parameters=_parameters(experts, layouts, backbone),
        similarity=cosine,
        overlap=overlap,
        chance_overlap=round(fmean(densities), 6) if densities else 0.0,
    )


def _expert(expert: Expert, layout: ExpertLayout, size: int, backbone: Checkpoint) -> ExpertSummary:
    elements = sum(_elements(backbone, name) for name in expert.sparse)
    stored = sum(delta.index.numel() for delta in expert.sparse.values())
    kinds = {"int8" if name in layout.quantised else "bf16" for name in expert.sparse}
    kinds |= {_DTYPES[part.a.dtype] for part in expert.low_rank.values()}
    rank_of = {name: part.rank for name, part in sorted(expert.low_rank.items())}
    ranks = rank_of.values()
    return ExpertSummary(
        name=expert.name,
        form=_form(expert),
        storage="mixed" if len(kinds) > 1 else next(iter(kinds), "bf16"),
        entries=expert.entries,
        nnz=expert.nnz,
        bytes=size,
        low_rank_bytes=sum(part.nbytes for part in expert.low_rank.values()),
        share=round(size / backbone.nbytes, 6),
        density=round(stored / elements, 6) if elements else 0.0,
        ranks=(min(ranks), max(ranks)) if ranks else None,
        rank_of=rank_of,
        cut=dict(expert.metadata),
    )


def _storage(backbone: Checkpoint) -> str:
    if backbone.quantised:
        bits = {scheme.bits for weight in backbone.quantised.values() for scheme in weight.schemes}
        return " and ".join(f"int{count}" for count in sorted(bits))
    dtype = backbone.usual_dtype
    return _DTYPES.get(dtype, str(dtype).removeprefix("torch."))


def _table(experts: Sequence[ExpertSummary]) -> Sequence[str]:
    sparse = any(item.density for item in experts)
    low_rank = any(item.ranks is not None for item in experts)
    rows = [
        (
            item.name,
            form_in_words(item.form),
            item.storage,
            *((f"{item.density:.2%}" if item.density else "-",) if sparse else ()),
            *((said(item.ranks),) if low_rank else ()),
            f"{item.bytes:,}",
            f"{item.share:.2%}",
            origin(item.cut),
        )
        for item in experts
    ]
    measures = (*("density",) * sparse, *("rank",) * low_rank, "bytes", "of backbone")
    heads = ("expert", "form", "values in", *measures, "how it was made")
    return aligned([heads, *rows], left=(0, 1, 2, len(heads) - 1))


def _parameters(
    experts: Mapping[str, Expert], layouts: Mapping[str, ExpertLayout], backbone: Checkpoint
) -> tuple[ParameterSummary, ...]:
    found = []
    for name in backbone.tensors:
        holders = [task for task, layout in layouts.items() if name in layout.bytes]
        if not holders:
            continue
        layer, kind = layer_and_kind(name)
        elements, norm = _elements(backbone, name), float(backbone.tensor(name, torch.float32).norm())
        sizes = [_size_and_norm(experts[task], name) for task in holders]
        ranks = [experts[task].low_rank[name].rank for task in holders if name in experts[task].low_rank]
        found.append(
            ParameterSummary(
                name=name,
                layer=layer,
                kind=kind,
                elements=elements,
                density=round(fmean(stored for stored, _ in sizes) / elements, 6),
                bytes=round(fmean(layouts[task].bytes[name] for task in holders), 1),
                rank=round(fmean(ranks), 2) if ranks else None,
                relative_norm=round(fmean(size for _, size in sizes) / norm, 6) if norm else 0.0,
            )
        )
    return tuple(sorted(found, key=lambda item: (item.layer is None, item.layer or 0, item.name)))


def _form(expert: Expert) -> str:
    if expert.sparse and expert.low_rank:
        return "both"
    return "sparse" if expert.sparse else "low_rank" if expert.low_rank else "none"


def _size_and_norm(expert: Expert, name: str) -> tuple[int, float]:
    if name in expert.matrices:
        stored = expert.sparse[name].index.numel() if name in expert.sparse else 0
        stored += expert.low_rank[name].entries if name in expert.low_rank else 0
        return stored, float(dense_residual(expert, name).norm())
    return expert.dense[name].numel(), float(expert.dense[name].norm())


def _elements(backbone: Checkpoint, name: str) -> int:
    return backbone.tensors[name].nbytes // backbone.tensors[name].dtype.itemsize


def _extremes(inspection: Inspection) -> Sequence[str]:
    lines = []
    tables = [("similarity of the experts (cosine)", inspection.similarity)]
    if inspection.chance_overlap:
        tables.append(("sparse entries in common", inspection.overlap))
    for title, table in tables:
        pairs = [
            (table.values[i][j], table.names[j], table.names[i]) for i in range(len(table.names)) for j in range(i)
        ]
        (most, *high), (least, *low) = max(pairs), min(pairs)
        if len(pairs) == 1:
            lines.append(f"{title}: {most:.3f} ({', '.join(high)})")
        else:
            lines.append(f"{title}: highest {most:.3f} ({', '.join(high)}), lowest {least:.3f} ({', '.join(low)})")
    if inspection.chance_overlap:
        lines[-1] += f"; {inspection.chance_overlap:.3f} is expected by chance"
    return lines
