"""The report of `overtone inspect --html`."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from merge.inspect.layers import said
from merge.inspect.origin import form_in_words, origin
from merge.inspect.pictures import Pictures
from merge.inspect.similarity import PairTable
from merge.inspect.summary import Inspection, ParameterSummary
from merge.report import bar_chart, cell_table, figure, line_chart, page, text_table, tile
from merge.router.quality import CurvePoint
from merge.wording import size


def html_page(found: Inspection, pictures: Pictures) -> str:
    """Draw a report.

    Args:
        found: the bundle's summary.
        pictures: what its inputs allow to be measured.
    """
    figures = [_experts(found), _spectra(pictures), *_similarities(found, pictures), _confusion(pictures)]
    figures += [_layers(found), _ranks(found), _sizes(found)]
    return page(
        found.name,
        f"Merged {found.created[:10]}; backbone {found.backbone['digest'][:12]}. {_libraries(found)}",
        tuple(_tiles(found, pictures)),
        figures,
        [*found.notes, *pictures.remarks],
    )


def _tiles(found: Inspection, pictures: Pictures) -> Iterable[str]:
    total = sum(item.bytes for item in found.experts)
    count = max(1, len(found.experts))
    yield tile(f"{found.backbone['parameters']:,}", "parameters of the backbone")
    yield tile(size(found.backbone["bytes"]), "bytes of the backbone")
    yield tile(str(len(found.experts)), "expert" if len(found.experts) == 1 else "experts")
    if any(item.density for item in found.experts):
        yield tile(f"{sum(item.density for item in found.experts) / count:.2%}", "of a weight's entries in an expert")
    ranks = [item.ranks for item in found.experts if item.ranks is not None]
    if ranks:
        yield tile(
            f"{min(least for least, _ in ranks)} to {max(most for _, most in ranks)}", "rank of an expert's weights"
        )
    yield tile(f"{total / count / max(1, found.backbone['bytes']):.2%}", "of the backbone's bytes in an expert")
    if pictures.confusion is not None:
        yield tile(f"{pictures.confusion.accuracy:.1%}", "of the prompts routed correctly, cross-validated")


def _experts(found: Inspection) -> str:
    heads = (
        "expert", "form", "values in", "numbers", "not zero", "density", "rank", "bytes", "of the backbone",
        "how it was made",
    )  # fmt: skip
    numeric = frozenset({"numbers", "not zero", "density", "bytes", "of the backbone"})
    rows = [
        (
            item.name, form_in_words(item.form), item.storage, f"{item.entries:,}", f"{item.nnz:,}",
            f"{item.density:.2%}" if item.density else "-", said(item.ranks), f"{item.bytes:,}", f"{item.share:.2%}",
            origin(item.cut),
        )
        for item in found.experts
    ]  # fmt: skip
    return figure(
        "Experts",
        "Numbers are values of sparse entries and of low-rank factors, with the deltas of norms and biases. Density is "
        "the share of a weight's entries that its sparse part has. The last columns compare with the backbone's bytes.",
        text_table(heads, rows, numeric),
        True,
    )


def _spectra(pictures: Pictures) -> str:
    spectra = pictures.spectra
    if spectra is None:
        return ""
    chart = line_chart(
        [(curve.label, spectra.frequency, curve.power) for curve in spectra.curves],
        "spatial frequency, cycles a sample",
        "power, 1 = evenly spread",
        1040,
    )
    note = (
        f"{spectra.of} Mean power of the 2-D Fourier coefficients at each radius, relative to the mean over all of a "
        f"weight's coefficients before any filter; mean over {spectra.matrices} weights."
    )
    return figure("Radial spectrum", note, chart, True)


def _similarities(found: Inspection, pictures: Pictures) -> Iterable[str]:
    if pictures.task_similarity is not None:
        note = "Cosine of the fine-tunes' changes θₖ − θ₀, over the 2-D weights that experts change."
        yield figure("Similarity of the task vectors", note, _cosines(pictures.task_similarity))
    else:
        note = "Cosine of what the experts add to 2-D weights. The task vectors are unavailable."
        yield figure("Similarity of the experts", note, _cosines(found.similarity))
    if found.chance_overlap:
        note = (
            "Share of the sparse entries that two experts have in common, of the smaller one's. Drawn at random it "
            f"would be {found.chance_overlap:.1%}. The diagonal is left out."
        )
        yield figure("Overlap of the experts", note, _shares(found.overlap, found.chance_overlap))
    if pictures.task_similarity is not None:
        note = "Cosine of what the experts add to the backbone: the fine-tunes' differences from it, not from the base."
        yield figure("Similarity of the experts' residuals", note, _cosines(found.similarity))


def _confusion(pictures: Pictures) -> str:
    confusion = pictures.confusion
    if confusion is None:
        reason = "Not shown: this needs a router and the recipe's calibration prompts. The remarks say what is missing."
        return figure("Router", reason, "")
    shares = [[count / max(1, sum(row)) for count in row] for row in confusion.counts]
    values = [[share or None for share in row] for row in shares]
    table = cell_table(confusion.tasks, confusion.choices, values, "router confusion matrix", lambda v: f"{v:.0%}")
    note = (
        f"Where each task's calibration prompts went. {confusion.folds} routers were trained, each without a "
        f"{_ordinal(confusion.folds)} of the wordings, which it then judged."
    )
    return figure("Router", note, table) + _coverage(confusion.curve)


def _coverage(curve: Sequence[CurvePoint]) -> str:
    points = sorted((point.coverage, point.accuracy) for point in curve if point.accuracy is not None)
    if not points:
        return ""
    note = (
        "Of the prompts that reach a threshold, the share whose most probable expert is theirs. "
        "A lower threshold covers more prompts."
    )
    chart = line_chart([("accuracy", [x for x, _ in points], [y for _, y in points])], "coverage", "accuracy")
    return figure("Router: coverage and accuracy", note, chart)


def _layers(found: Inspection) -> str:
    note = "‖E‖ / ‖W‖ by layer, mean over the experts: where the residuals change the backbone most."
    norms = {(item.kind, item.layer): item.relative_norm for item in found.parameters if item.layer is not None}
    return _by_layer("Size of the residuals", note, norms, lambda value: f"{value:.1%}")


def _ranks(found: Inspection) -> str:
    note = "Rank of the low-rank parts by layer, mean over the experts that have one there."
    ranks = {
        (item.kind, item.layer): item.rank
        for item in found.parameters
        if item.layer is not None and item.rank is not None
    }
    return _by_layer("Ranks", note, ranks, lambda value: f"{value:.3g}")


def _by_layer(title: str, note: str, cells: Mapping[tuple[str, int], float], text: Callable[[float], str]) -> str:
    """A figure with one number for each kind of parameter and each layer; empty if there are none."""
    if not cells:
        return ""
    kinds = list(dict.fromkeys(kind for kind, _ in cells))
    layers = sorted({layer for _, layer in cells})
    values = [[cells.get((kind, layer)) for layer in layers] for kind in kinds]
    return figure(title, note, cell_table(kinds, [str(layer) for layer in layers], values, title.lower(), text))


def _sizes(found: Inspection) -> str:
    groups: dict[str, list[ParameterSummary]] = {}
    for item in found.parameters:
        groups.setdefault("outside" if item.layer is None else f"layer {item.layer}", []).append(item)
    if not groups:
        return ""
    sizes, texts = [], []
    for items in groups.values():
        entries, elements = (sum(n) for n in zip(*((i.density * i.elements, i.elements) for i in items), strict=True))
        sizes.append(sum(item.bytes for item in items))
        texts.append(f"{size(sizes[-1])}, {entries / elements:.2%}")
    chart = bar_chart(list(groups), sizes, texts, "bytes by layer")
    note = "Bytes of an expert in each layer, mean over the experts, and its density there (norms are stored whole)."
    return figure("Bytes and density by layer", note, chart)


def _cosines(table: PairTable) -> str:
    return cell_table(table.names, table.names, _off_diagonal(table), "cosine", lambda v: f"{v:z.2f}", full=0.25)


def _shares(table: PairTable, chance: float) -> str:
    return cell_table(
        table.names, table.names, _off_diagonal(table), "share", lambda v: f"{v:.1%}", usual=chance, full=0.05
    )


def _off_diagonal(table: PairTable) -> list[list[float | None]]:
    """The table without its diagonal, which is always 1 and would have the strongest colour."""
    return [[None if i == j else number for j, number in enumerate(row)] for i, row in enumerate(table.values)]


def _libraries(found: Inspection) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(found.versions.items()))


def _ordinal(count: int) -> str:
    names: Sequence[str] = ("half", "third", "quarter", "fifth")
    return names[count - 2] if count - 2 < len(names) else f"{count}th"
