"""From a pool's cells to the JSON document and the tables people read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean
from typing import Any

from benchmarks.quality.chat.table import ChatTable, Column, Cut, Marks
from benchmarks.quality.report import Spread
from benchmarks.quality.routing import Routing
from benchmarks.quality.rows import Row
from benchmarks.quality.store import finished_results


@dataclass(frozen=True)
class Plan:
    """What is measured in every pool.

    Attributes:
        rows: the backbones.
        columns: the experts.
        tasks: those that are scored; None: all of the pool.
    """

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    tasks: tuple[str, ...] | None = None

    def scored(self, table: ChatTable) -> tuple[str, ...]:
        """The tasks of a pool that are scored."""
        return tuple(task for task in table.pool.known if self.tasks is None or task in self.tasks)


def measure(table: ChatTable, plan: Plan) -> None:
    """Measure a pool's cells, those of one backbone after the other.

    Raises:
        OutOfTimeError: the store's time is over.
    """
    tasks = plan.scored(table)
    table.individual(tasks)
    table.routing()
    for row in plan.rows:
        scale = table.scale(row)
        table.backbone(row, scale, tasks)
        table.general(row, scale)
        for column in plan.columns:
            for task in tasks:
                table.expert(row, scale, column, task)
    table.close()


def collect(tables: Sequence[ChatTable], plan: Plan) -> dict[str, Any]:
    """Put together what is finished of one pool.

    Args:
        tables: one for each seed, whose stores compute nothing.
        plan: what was asked for.
    """
    tasks = plan.scored(tables[0])
    individual = finished_results([partial(table.individual, tasks) for table in tables])
    routing = finished_results([table.routing for table in tables])
    document: dict[str, Any] = {
        "kind": tables[0].pool.kind,
        "pool": list(tables[0].pool.tasks),
        "tasks": list(tasks),
        "fine_tunes": _averages(individual, individual) if individual else None,
        "router": [{key: value for key, value in asdict(found).items() if key != "chosen"} for found in routing],
        "rows": [],
    }
    for row in plan.rows:
        line = _row(tables[: len(individual)], plan.columns, row, tasks, individual, routing)
        if line is not None:
            document["rows"].append(line)
    return document


def _row(
    tables: Sequence[ChatTable],
    columns: Sequence[Column],
    row: Row,
    tasks: Sequence[str],
    individual: Sequence[Marks],
    routing: Sequence[Routing],
) -> dict[str, Any] | None:
    scales = finished_results([partial(table.scale, row) for table in tables])
    pairs = list(zip(tables, scales, strict=False))
    alone = finished_results([partial(table.backbone, row, scale, tasks) for table, scale in pairs])
    if not alone:
        return None
    general = finished_results([partial(table.general, row, scale) for table, scale in pairs])
    line: dict[str, Any] = {
        "row": row.name,
        "lambda": scales,
        "alone": _averages(alone, individual),
        "general": _general([found for found in general if found is not None]),
        "experts": [],
    }
    for column in columns:
        cells = finished_results([partial(_cut, *pair, row, column, tasks) for pair in pairs[: len(alone)]])
        if cells:
            line["experts"].append(_column(column, cells, individual, alone, routing))
    return line


def _cut(table: ChatTable, scale: float, row: Row, column: Column, tasks: Sequence[str]) -> dict[str, Cut]:
    return {task: table.expert(row, scale, column, task) for task in tasks}


def _column(
    column: Column,
    cells: Sequence[Mapping[str, Cut]],
    individual: Sequence[Marks],
    alone: Sequence[Marks],
    routing: Sequence[Routing],
) -> dict[str, Any]:
    marks: list[Marks] = [{task: cut.marks for task, cut in cell.items()} for cell in cells]
    divergences = [cut.divergence for cell in cells for cut in cell.values() if cut.divergence is not None]
    found = {
        **asdict(column),
        "bytes": round(fmean(cut.bytes for cell in cells for cut in cell.values()), 6),
        "divergence": round(fmean(divergences), 6) if divergences else None,
        "oracle": _averages(marks, individual),
    }
    if len(routing) >= len(cells):
        routed = [routed_marks(*parts) for parts in zip(routing, marks, alone, strict=False)]
        found["routed"] = _averages(routed, individual)
    return found


def routed_marks(routing: Routing, expert: Marks, backbone: Marks) -> Marks:
    """The marks with the router's choices.

    A request that went to its own expert has that expert's mark, one that went to none the backbone's, and one that
    went to another expert 0.
    """
    return {
        task: [
            own if choice == task else none if choice == "" else 0.0
            for choice, own, none in zip(routing.chosen[task], expert[task], backbone[task], strict=True)
        ]
        for task in expert
    }


def _averages(cells: Sequence[Marks], individual: Sequence[Marks]) -> dict[str, Any]:
    """Accuracy by task, and its average over the tasks, plain and as a share of the fine-tunes' average.

    The share is None if the fine-tunes score nothing.
    """
    plain = [fmean(fmean(marks) for marks in cell.values()) for cell in cells]
    whole = [fmean(fmean(cell[task]) for task in found) for cell, found in zip(individual, cells, strict=False)]
    shares = [found / best for found, best in zip(plain, whole, strict=True) if best]
    return {
        "tasks": {task: round(fmean(fmean(cell[task]) for cell in cells), 4) for task in cells[0]},
        "average": asdict(Spread.of(plain)),
        "share": asdict(Spread.of(shares)) if shares else None,
        "seeds": len(cells),
    }


def _general(found: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    return {key: round(fmean(one[key] for one in found), 6) for key in found[0]} if found else None


def as_markdown(document: Mapping[str, Any]) -> str:
    """A table for each pool: backbones by experts, in per cent of the fine-tunes' average, oracle and routed."""
    return "\n\n".join(_table(pool) for pool in document["pools"])


def _table(pool: Mapping[str, Any]) -> str:
    heads: dict[tuple[Any, ...], str] = {}
    for row in pool["rows"]:
        for cut in row["experts"]:
            how = "with prompts" if cut["prompts"] else "no prompts"
            heads[cut["form"], cut["budget"], cut["prompts"]] = f"{cut['form']} {cut['budget']:g} %, {how}"
    title = f"{pool['kind']}, {len(pool['pool'])} fine-tunes: {', '.join(pool['pool'])}"
    if pool["fine_tunes"] is None:
        return f"{title}: nothing is finished"
    average = pool["fine_tunes"]["average"]["mean"]
    lines = [f"{title}; the fine-tunes score {average:.3f} on {', '.join(pool['tasks'])}", ""]
    columns = ["backbone", "λ", "KL to the base", "right answers kept", "perplexity", "alone", *heads.values()]
    lines += [_line(columns), "|---" * len(columns) + "|"]
    for row in pool["rows"]:
        cells = {(cut["form"], cut["budget"], cut["prompts"]): _pair(cut) for cut in row["experts"]}
        general = row["general"]
        kept = ("", "", "") if general is None else (
            f"{general['divergence']:.3f}", f"{general['kept']:.0%}", f"× {general['perplexity_ratio']:.3f}"
        )  # fmt: skip
        scales = ", ".join(f"{scale:g}" for scale in dict.fromkeys(row["lambda"]))
        lines.append(_line([row["row"], scales, *kept, _share(row["alone"]), *(cells.get(head, "") for head in heads)]))
    return "\n".join(lines)


def _pair(cut: Mapping[str, Any]) -> str:
    return f"{_share(cut['oracle'])} / {_share(cut.get('routed'))}"


def _share(averages: Mapping[str, Any] | None) -> str:
    """Per cent of the fine-tunes' average."""
    if averages is None or averages["share"] is None:
        return "-"
    return Spread(**averages["share"]).percent(averages["seeds"])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
