"""An evaluation as a table for people."""

from collections.abc import Sequence

from merge.evaluate.result import COLUMNS, Evaluation, TaskResult
from merge.wording import aligned, counted

HEADS = {"fine_tune": "fine-tune", "base": "base", "backbone": "backbone", "expert": "expert", "routed": "routed"}


def as_text(found: Evaluation) -> str:
    """Lay out the scores, the router's mistakes, and what the experts cost."""
    columns = [column for column in COLUMNS if any(column in task.answers for task in found.tasks.values())]
    compared = any(_divergence(task, "expert") is not None for task in found.tasks.values())
    head = ["task", "prompts", "metric", *(HEADS[column] for column in columns)]
    head += ["router"] if found.routes is not None else []
    head += ["mean KLD", "99 % KLD"] if compared else []
    rows = [_row(name, task, columns, found.routes is not None, compared) for name, task in found.tasks.items()]
    last = ["average", "", "", *(_number(found.average[column]) for column in columns)]
    last += [_number(found.router_accuracy)] if found.routes is not None else []
    rows.append([*last, *([""] * (len(head) - len(last)))])
    lines = [*aligned([head, *rows], left=(0, 2)), ""]
    if (share := found.share("routed")) is not None:
        lines.append(f"routed: {share:.1%} of the fine-tunes' average")
    if compared:
        lines.append("KLD: of backbone + expert from the fine-tune, in nats a token, along the fine-tune's own replies")
    lines += _routes(found)
    if found.expert_bytes_fraction is not None:
        lines.append(
            f"an expert takes {found.expert_bytes_fraction:.2%} of the backbone's bytes, "
            f"and has {found.expert_density:.2%} as many numbers as the backbone"
        )
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def _row(name: str, task: TaskResult, columns: Sequence[str], routed: bool, compared: bool) -> list[str]:
    row = [name, str(task.prompts), task.metric, *(_number(task.score(column)) for column in columns)]
    row += [_number(task.router_accuracy)] if routed else []
    if compared:
        divergence = _divergence(task, "expert")
        row += ["-", "-"] if divergence is None else [f"{divergence[0]:.4f}", f"{divergence[1]:.4f}"]
    return row


def _divergence(task: TaskResult, column: str) -> tuple[float, float] | None:
    answers = task.answers.get(column)
    if answers is None or answers.divergence is None:
        return None
    return answers.divergence.mean, answers.divergence.p99


def _routes(found: Evaluation) -> list[str]:
    if found.routes is None:
        return []
    prompts = counted(sum(task.prompts for task in found.tasks.values()), "prompt")
    lines = [f"router: {_number(found.router_accuracy)} of {prompts} went to their own expert"]
    choices = found.routes.choices
    for task, row in zip(found.routes.tasks, found.routes.counts, strict=True):
        own = task if task in found.tasks else choices[-1]
        wrong = [f"{count} to {name}" for name, count in zip(choices, row, strict=True) if count and name != own]
        if wrong:
            lines.append(f"  of {counted(sum(row), 'prompt')} of {task}: {', '.join(wrong)}")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
