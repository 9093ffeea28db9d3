"""Asking every prompt of each model and scoring the replies."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from merge.bundle import Bundle
from merge.checkpoint import open_checkpoint
from merge.evaluate.ask import Ask, Question, Reply
from merge.evaluate.compare import score, with_references
from merge.evaluate.http import Served
from merge.evaluate.lines import Line
from merge.evaluate.references import References, longest_answers
from merge.evaluate.result import NONE, Answers, Evaluation, Routes, TaskResult
from merge.progress import Progress

FREE_METRICS = frozenset({"contains", "regex", "number", "choice"})
"""Metrics that search the reply for the answer, so that the reply may be much longer."""

FREE_TOKENS = 256

Replies = Mapping[str, Mapping[str, Sequence[Reply]]]
"""By task and column."""


def evaluate(
    ask: Ask,
    served: Served,
    lines: Sequence[Line],
    bundle: Bundle | None = None,
    references: References | None = None,
    compared: int = 0,
    max_tokens: int | None = None,
    progress: Progress | None = None,
    name: str = "",
    notes: Sequence[str] = (),
) -> Evaluation:
    """Measure a bundle.

    Args:
        ask: how to reach it.
        served: what it serves; every task of `lines` is one of its experts.
        lines: the prompts.
        bundle: what is behind `ask`, for sizes and tokens; None if it is not available.
        references: its base and fine-tunes; None leaves them out.
        compared: prompts of each task along which the models are compared with the fine-tune, token by token.
        max_tokens: of a reply; None: as `reply_limits` says.
        progress: receives the progress.
        name: of what is measured.
        notes: what the caller knows of it.
    """
    shown = progress or Progress(False)
    tasks = _by_task(lines)
    strangers = [line for line in lines if line.task is None and served.auto is not None]
    limits = reply_limits(tasks, bundle) if max_tokens is None else dict.fromkeys(tasks, max_tokens)
    replies, foreign = _asked(ask, served, tasks, strangers, limits, shown)
    answers = {
        task: {
            column: Answers(score([reply.text for reply in found], tasks[task]), fmean(reply.tokens for reply in found))
            for column, found in columns.items()
        }
        for task, columns in replies.items()
    }
    routed = {task: columns["routed"] for task, columns in replies.items() if "routed" in columns}
    if references is not None:
        answers = with_references(answers, references, tasks, limits, routed, compared, shown)
    density, fraction = (None, None) if bundle is None else expert_size(bundle)
    return Evaluation(
        name=name,
        tasks={
            task: TaskResult(
                prompts=len(items),
                metric=", ".join(dict.fromkeys(line.metric for line in items)),
                prompt_tokens=fmean(reply.prompt_tokens for reply in replies[task]["expert"]),
                answers=answers[task],
                router_accuracy=_share(routed[task], task) if task in routed else None,
                expert_bytes=None if bundle is None else bundle.card(task).bytes,
            )
            for task, items in tasks.items()
        },
        routes=_routes({**routed, **({NONE: foreign} if foreign else {})}, served) if routed else None,
        expert_density=density,
        expert_bytes_fraction=fraction,
        notes=(*notes, *(references.missing if references is not None else ())),
    )


def reply_limits(tasks: Mapping[str, Sequence[Line]], bundle: Bundle | None) -> dict[str, int]:
    """Most tokens of a task's replies: 16 more than twice its longest answer; 256 if a metric searches the reply."""
    longest = longest_answers({task: [line.answer for line in items] for task, items in tasks.items()}, bundle)
    return {
        task: FREE_TOKENS if any(line.metric in FREE_METRICS for line in items) else 16 + 2 * longest[task]
        for task, items in tasks.items()
    }


def expert_size(bundle: Bundle) -> tuple[float, float]:
    """(stored numbers over the backbone's parameters, bytes over its unquantised bytes), means over the experts."""
    backbone = open_checkpoint(bundle.backbone_dir)
    parameters = sum(math.prod(info.shape) for info in backbone.tensors.values())
    cards = bundle.manifest.experts
    entries = sum(card.entries for card in cards) / len(cards)
    size = sum(card.bytes for card in cards) / len(cards)
    return entries / parameters, size / backbone.nbytes


def _by_task(lines: Sequence[Line]) -> dict[str, list[Line]]:
    found: dict[str, list[Line]] = {}
    for line in lines:
        if line.task is not None:
            found.setdefault(line.task, []).append(line)
    return dict(sorted(found.items()))


def _asked(
    ask: Ask,
    served: Served,
    tasks: Mapping[str, Sequence[Line]],
    strangers: Sequence[Line],
    limits: Mapping[str, int],
    shown: Progress,
) -> tuple[Replies, Sequence[Reply]]:
    """The replies to the tasks' prompts, and to those of no task, of which only the router's choice matters."""
    columns = {"backbone": served.backbone, **({} if served.auto is None else {"routed": served.auto})}
    questions = {
        (task, column): [
            Question(model, line.example.text, limits[task], line.example.messages) for line in tasks[task]
        ]
        for task in tasks
        for column, model in {**columns, "expert": task}.items()
    }
    foreign = [Question(served.auto or "", line.example.text, 1, line.example.messages) for line in strangers]
    everything = [*foreign, *(question for items in questions.values() for question in items)]
    with shown.stage("replies of the backbone, the experts and the routed model", len(everything)) as advance:
        waiting = iter(ask(everything, advance))
    first = [next(waiting) for _ in foreign]
    found: dict[str, dict[str, list[Reply]]] = {task: {} for task in tasks}
    for (task, column), items in questions.items():
        found[task][column] = [next(waiting) for _ in items]
    return found, first


def _share(replies: Sequence[Reply], expert: str) -> float:
    return sum(reply.ran == expert for reply in replies) / len(replies)


def _routes(replies: Mapping[str, Sequence[Reply]], served: Served) -> Routes:
    counts = {task: Counter(reply.ran for reply in found) for task, found in replies.items()}
    others = sorted({ran for found in counts.values() for ran in found} - {*served.experts, served.backbone})
    choices = (*sorted(served.experts), *others, served.backbone)
    rows = (tuple(found[choice] for choice in choices) for found in counts.values())
    return Routes(tuple(counts), choices, tuple(rows))
