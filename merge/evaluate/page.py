"""An evaluation as one HTML file, in the style of `overtone inspect`."""

from collections.abc import Iterator

from merge.evaluate.result import COLUMNS, Evaluation, Routes, TaskResult
from merge.evaluate.text import HEADS
from merge.report import bar_chart, cell_table, figure, page, text_table, tile


def html_page(found: Evaluation) -> str:
    """Draw an evaluation."""
    figures = [_scores(found), _averages(found), _router(found.routes), _divergences(found), _tokens(found)]
    tasks = len(found.tasks)
    subtitle = f"{sum(task.prompts for task in found.tasks.values()):,} prompts of {tasks} task{'s' * (tasks != 1)}."
    return page(found.name, subtitle, tuple(_tiles(found)), figures, found.notes)


def _tiles(found: Evaluation) -> Iterator[str]:
    for column in ("fine_tune", "routed"):
        if (score := found.average[column]) is not None:
            yield tile(f"{score:.3f}", f"{HEADS[column]}, average over the tasks")
    if (share := found.share("routed")) is not None:
        yield tile(f"{share:.1%}", "of the fine-tunes' average, routed")
    if found.router_accuracy is not None:
        yield tile(f"{found.router_accuracy:.1%}", "of the prompts went to their own expert")
    if found.expert_bytes_fraction is not None:
        yield tile(f"{found.expert_bytes_fraction:.2%}", "of the backbone's bytes in an expert")


def _scores(found: Evaluation) -> str:
    heads = ("task", "prompts", "metric", *HEADS.values(), "router", "bytes of the expert")
    rows = [
        (
            name,
            f"{task.prompts:,}",
            task.metric,
            *(_number(task.score(column)) for column in COLUMNS),
            _number(task.router_accuracy),
            "-" if task.expert_bytes is None else f"{task.expert_bytes:,}",
        )
        for name, task in found.tasks.items()
    ]
    means = [_number(found.average[column]) for column in COLUMNS]
    rows.append(("average", "", "", *means, _number(found.router_accuracy), ""))
    note = "Mean of the metric: the task's fine-tune, its base, and the merged model without and with an expert."
    return figure("Scores", note, text_table(heads, rows, frozenset(heads) - {"task", "metric"}), True)


def _averages(found: Evaluation) -> str:
    known = {HEADS[column]: score for column, score in found.average.items() if score is not None}
    chart = bar_chart(list(known), list(known.values()), [f"{score:.3f}" for score in known.values()], "average scores")
    return figure("Average over the tasks", "A model that could not be asked for every task has no bar.", chart)


def _router(routes: Routes | None) -> str:
    if routes is None:
        return ""
    values = [[count / max(1, sum(row)) or None for count in row] for row in routes.counts]
    drawn = cell_table(routes.tasks, routes.choices, values, "where prompts went", lambda share: f"{share:.0%}")
    return figure("Router", "Where each task's prompts went: rows are tasks, columns what answered.", drawn)


def _divergences(found: Evaluation) -> str:
    columns = [column for column in COLUMNS[1:] if any(_has(task, column) for task in found.tasks.values())]
    if not columns:
        return ""
    heads = ("task", "tokens", *(f"{HEADS[column]}, {figure}" for column in columns for figure in ("mean", "99 %")))
    rows = []
    for name, task in found.tasks.items():
        known = {column: found.divergence for column, found in task.answers.items() if found.divergence is not None}
        if known:
            pairs = [(known[column].mean, known[column].p99) if column in known else (None, None) for column in columns]
            cells = ["-" if value is None else f"{value:.4f}" for pair in pairs for value in pair]
            rows.append((name, f"{next(iter(known.values())).tokens:,}", *cells))
    note = "KL(fine-tune ‖ model) of the next token, in nats, along the fine-tune's own replies."
    return figure("Divergence from the fine-tunes", note, text_table(heads, rows, frozenset(heads) - {"task"}), True)


def _tokens(found: Evaluation) -> str:
    heads = ("task", "prompt", *HEADS.values())
    rows = [
        (
            name,
            f"{task.prompt_tokens:.1f}",
            *(f"{task.answers[column].tokens:.1f}" if column in task.answers else "-" for column in COLUMNS),
        )
        for name, task in found.tasks.items()
    ]
    note = "Mean over the prompts; replies with the token that ends them."
    return figure("Tokens", note, text_table(heads, rows, frozenset(heads) - {"task"}), True)


def _has(task: TaskResult, column: str) -> bool:
    return column in task.answers and task.answers[column].divergence is not None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
