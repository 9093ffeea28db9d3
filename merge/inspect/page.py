"""The report: one HTML file with everything in it, and nothing that it would fetch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

from merge.inspect.layers import said
from merge.inspect.pictures import Pictures
from merge.inspect.similarity import PairTable
from merge.inspect.summary import Inspection, ParameterSummary
from merge.inspect.svg import bar_chart, cell_table, line_chart
from merge.router.quality import CurvePoint

STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #ffffff; --ink: #1c1f24; --soft: #5d6672; --line: #e3e5e8;
  --plus: #1f6feb; --minus: #c2410c; --second: #c2410c; --on: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --page: #121417; --card: #1b1e23; --ink: #e8eaed; --soft: #9aa4b1;
  --line: #2f343b; --plus: #6cb0ff; --minus: #ff9a62; --second: #ff9a62; --on: #0c1117; } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 system-ui, sans-serif }
main { max-width: 1180px; margin: 0 auto; padding: 36px 24px 60px }
h1 { font-size: 28px; margin: 0 0 4px } h2 { font-size: 17px; margin: 0 0 6px }
p { margin: 0 0 14px } .soft, figcaption { color: var(--soft) } figcaption { margin-bottom: 14px }
.tiles { display: flex; flex-wrap: wrap; gap: 14px; margin: 22px 0 }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 18px;
  flex: 1 1 150px }
.tile b { display: block; font-size: 22px; font-variant-numeric: tabular-nums }
.grid2 { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)); gap: 18px }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 20px 22px;
  overflow-x: auto } figure.wide { grid-column: 1 / -1 }
svg { max-width: 100%; height: auto; display: block; font: 12px system-ui, sans-serif }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 13px }
th, td { padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); white-space: nowrap }
td.n, th.n { text-align: right } tr:last-child td { border-bottom: 0 }
.grid { stroke: var(--line) } .tick, .axis { fill: var(--soft) } .value { fill: var(--ink); font-size: 11px }
.value.on { fill: var(--on) } .mid { text-anchor: middle } .end { text-anchor: end }
.curve { fill: none; stroke-width: 2.2; stroke-linejoin: round } .c0 { stroke: var(--plus) }
.c1 { stroke: var(--second); stroke-dasharray: 6 4 }
.bar, .plus { fill: var(--plus) } .minus { fill: var(--minus) } .bar { fill-opacity: .8 }
ul { color: var(--soft); padding-left: 20px }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,"><title>{title}</title><style>{style}</style></head><body><main>
<h1>{title}</h1><p class="soft">{subtitle}</p>
<div class="tiles">{tiles}</div>
<div class="grid2">{figures}</div>
{remarks}</main></body></html>
"""


def html_page(found: Inspection, pictures: Pictures) -> str:
    """Draw a report.

    Args:
        found: what the bundle says of itself.
        pictures: what its inputs allow to be measured.
    """
    figures = [_experts(found), _spectra(pictures), *_similarities(found, pictures), _confusion(pictures)]
    figures += [_layers(found), _ranks(found), _sizes(found)]
    remarks = [*found.notes, *pictures.remarks]
    listed = "".join(f"<li>{escape(remark)}</li>" for remark in remarks)
    return _PAGE.format(
        title=escape(found.name),
        style=STYLE,
        subtitle=escape(f"Merged {found.created[:10]}; backbone {found.backbone['digest'][:12]}. {_libraries(found)}"),
        tiles="".join(_tiles(found, pictures)),
        figures="".join(figures),
        remarks=f"<h2 style='margin-top:28px'>Remarks</h2><ul>{listed}</ul>" if listed else "",
    )


def _tiles(found: Inspection, pictures: Pictures) -> Iterable[str]:
    total = sum(item.bytes for item in found.experts)
    count = max(1, len(found.experts))
    yield _tile(f"{found.backbone['parameters']:,}", "parameters of the backbone")
    yield _tile(_bytes(found.backbone["bytes"]), "bytes of the backbone")
    yield _tile(str(len(found.experts)), "expert" if len(found.experts) == 1 else "experts")
    if any(item.density for item in found.experts):
        yield _tile(f"{sum(item.density for item in found.experts) / count:.2%}", "of a weight's entries in an expert")
    ranks = [item.ranks for item in found.experts if item.ranks is not None]
    if ranks:
        yield _tile(
            f"{min(least for least, _ in ranks)} to {max(most for _, most in ranks)}", "rank of an expert's weights"
        )
    yield _tile(f"{total / count / max(1, found.backbone['bytes']):.2%}", "of the backbone's bytes in an expert")
    if pictures.confusion is not None:
        yield _tile(f"{pictures.confusion.accuracy:.1%}", "of the prompts routed right, cross-validated")


def _experts(found: Inspection) -> str:
    heads = ("expert", "form", "values", "entries", "not zero", "density", "rank", "bytes", "of the backbone", "cut")
    numeric = {"entries", "not zero", "density", "bytes", "of the backbone"}
    rows = []
    for item in found.experts:
        cut = ", ".join(f"{key} {value}" for key, value in item.cut.items())
        cells = (
            item.name, item.form, item.storage, f"{item.entries:,}", f"{item.nnz:,}", f"{item.density:.2%}",
            said(item.ranks), f"{item.bytes:,}", f"{item.share:.2%}", cut,
        )  # fmt: skip
        rows.append(
            "".join(
                f'<td class="{"n" if head in numeric else ""}">{escape(cell)}</td>'
                for head, cell in zip(heads, cells, strict=True)
            )
        )
    head = "".join(f'<th class="{"n" if name in numeric else ""}">{name}</th>' for name in heads)
    table = f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"
    return _figure("Experts", "What each expert stores; entries include the deltas of norms and biases.", table, True)


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
    return _figure("Radial spectrum", note, chart, True)


def _similarities(found: Inspection, pictures: Pictures) -> Iterable[str]:
    if pictures.task_similarity is not None:
        note = "Cosine of the fine-tunes' changes θₖ − θ₀, over the 2-D weights that experts change."
        yield _figure("Similarity of the task vectors", note, _cosines(pictures.task_similarity))
    else:
        note = "Cosine of what the experts add to 2-D weights. The task vectors are not to be had."
        yield _figure("Similarity of the experts", note, _cosines(found.similarity))
    if found.chance_overlap:
        note = (
            "Share of the sparse entries that two experts have in common, of the smaller one's. Drawn at random it "
            f"would be {found.chance_overlap:.1%}. The diagonal is left out."
        )
        yield _figure("Overlap of the experts", note, _shares(found.overlap, found.chance_overlap))
    if pictures.task_similarity is not None:
        note = "Cosine of what the experts add to the backbone: small, and cut against the backbone, not the base."
        yield _figure("Similarity of the experts' residuals", note, _cosines(found.similarity))


def _confusion(pictures: Pictures) -> str:
    confusion = pictures.confusion
    if confusion is None:
        reason = (
            "Not shown: it needs a router and the recipe's calibration prompts. The remarks below say what is missing."
        )
        return _figure("Router", reason, "")
    shares = [[count / max(1, sum(row)) for count in row] for row in confusion.counts]
    values = [[share or None for share in row] for row in shares]
    table = cell_table(confusion.tasks, confusion.choices, values, "router confusion matrix", lambda v: f"{v:.0%}")
    note = (
        f"Where each task's calibration prompts went. {confusion.folds} routers were trained, each without a "
        f"{_ordinal(confusion.folds)} of the wordings, which it then judged."
    )
    return _figure("Router", note, table) + _coverage(confusion.curve)


def _coverage(curve: Sequence[CurvePoint]) -> str:
    points = sorted((point.coverage, point.accuracy) for point in curve if point.accuracy is not None)
    if not points:
        return ""
    note = (
        "Of the prompts that reach a threshold, the share whose most probable expert is theirs. "
        "A lower threshold covers more prompts."
    )
    chart = line_chart([("accuracy", [x for x, _ in points], [y for _, y in points])], "coverage", "accuracy")
    return _figure("Router: coverage and accuracy", note, chart)


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
    """A figure of one number for each kind of parameter and each layer; nothing without any."""
    if not cells:
        return ""
    kinds = list(dict.fromkeys(kind for kind, _ in cells))
    layers = sorted({layer for _, layer in cells})
    values = [[cells.get((kind, layer)) for layer in layers] for kind in kinds]
    return _figure(title, note, cell_table(kinds, [str(layer) for layer in layers], values, title.lower(), text))


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
        texts.append(f"{_bytes(sizes[-1])}, {entries / elements:.2%}")
    chart = bar_chart(list(groups), sizes, texts, "bytes by layer")
    note = "Bytes of an expert in each layer, mean over the experts, and its density there (norms are stored whole)."
    return _figure("Bytes and density by layer", note, chart)


def _cosines(table: PairTable) -> str:
    return cell_table(table.names, table.names, _off_diagonal(table), "cosine", lambda v: f"{v:z.2f}", full=0.25)


def _shares(table: PairTable, chance: float) -> str:
    return cell_table(
        table.names, table.names, _off_diagonal(table), "share", lambda v: f"{v:.1%}", usual=chance, full=0.05
    )


def _off_diagonal(table: PairTable) -> list[list[float | None]]:
    """The table without its diagonal, whose colour would be the strongest and say nothing."""
    return [[None if i == j else number for j, number in enumerate(row)] for i, row in enumerate(table.values)]


def _figure(title: str, note: str, body: str, wide: bool = False) -> str:
    return (
        f'<figure class="{"wide" if wide else ""}"><h2>{escape(title)}</h2><figcaption>{escape(note)}</figcaption>'
        f"{body}</figure>"
    )


def _tile(number: str, text: str) -> str:
    return f'<div class="tile"><b>{escape(number)}</b><span class="soft">{escape(text)}</span></div>'


def _libraries(found: Inspection) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(found.versions.items()))


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _ordinal(count: int) -> str:
    names: Sequence[str] = ("half", "third", "quarter", "fifth")
    return names[count - 2] if count - 2 < len(names) else f"{count}th"
