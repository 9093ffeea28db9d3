"""A bundle's models beside its base and its fine-tunes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from merge.evaluate.ask import Reply
from merge.evaluate.divergence import Reference, summarised
from merge.evaluate.lines import Line
from merge.evaluate.metrics import METRICS
from merge.evaluate.references import References, Written
from merge.evaluate.result import Answers
from merge.progress import Progress

BACKBONE, BASE = "backbone", "base"


def score(replies: Sequence[str], lines: Sequence[Line]) -> float:
    """Mean of each line's metric over its reply."""
    marks = [METRICS[line.metric](reply, line.answer) for reply, line in zip(replies, lines, strict=True)]
    return sum(marks) / len(marks)


def with_references(
    answers: Mapping[str, Mapping[str, Answers]],
    references: References,
    lines: Mapping[str, Sequence[Line]],
    limits: Mapping[str, int],
    routed: Mapping[str, Sequence[Reply]],
    compared: int,
    progress: Progress,
) -> dict[str, dict[str, Answers]]:
    """Put the base's and the fine-tunes' scores beside others, and each model's divergence from the fine-tune.

    Args:
        answers: by task and column.
        references: the models.
        lines: by task.
        limits: most tokens of a reply, by task.
        routed: by task, what the router chose for each line; empty without a router.
        compared: how many of each task's lines the divergence is measured along.
        progress: receives the progress.
    """
    steps = 0
    for task, items in lines.items():
        along = min(compared, len(items)) if task in references.fine_tunes else 0
        asked = (task in references.fine_tunes) + (references.base is not None)
        steps += asked * len(items) + along * (3 + (references.base is not None))
    if not steps:
        return {task: dict(found) for task, found in answers.items()}
    found = {}
    with progress.stage("base, fine-tunes and divergence", steps) as advance:
        for task, items in lines.items():
            columns = dict(answers[task])
            examples = [line.example for line in items]
            reference = None
            if task in references.fine_tunes:
                written = references.fine_tune_replies(task, examples, limits[task], advance)
                columns["fine_tune"] = _answers(written, items)
                if compared:
                    reference = references.reference(written[:compared], advance)
            if references.base is not None:
                columns[BASE] = _answers(references.base_replies(examples, limits[task], advance), items)
            if reference is not None:
                columns = _compared(columns, references, reference, task, routed.get(task, ()), advance)
            found[task] = columns
    return found


def _answers(written: Sequence[Written], lines: Sequence[Line]) -> Answers:
    tokens = sum(len(reply.tokens) for reply in written) / len(written)
    return Answers(score([reply.text for reply in written], lines), tokens)


def _compared(
    columns: Mapping[str, Answers],
    references: References,
    reference: Reference,
    task: str,
    routed: Sequence[Reply],
    advance: Callable[[], None],
) -> dict[str, Answers]:
    models = {"expert": task, **{name: name for name in (BACKBONE, BASE) if name in columns}}
    tokens: dict[str, list[Tensor]] = {}
    for model in models.values():
        tokens[model] = []
        for found in references.divergences(model, reference):
            tokens[model].append(found)
            advance()
    divergence = {column: summarised(tokens[model]) for column, model in models.items()}
    chosen = [reply.ran for reply in routed[: len(reference.prompts)]]
    if chosen and set(chosen) <= {*references.experts, BACKBONE}:  # a mix is neither
        parts = list[Tensor]()
        for model in sorted(set(chosen)):
            places = [place for place, ran in enumerate(chosen) if ran == model]
            own = tokens.get(model)
            parts += references.divergences(model, reference.only(places)) if own is None else [own[i] for i in places]
        divergence["routed"] = summarised(parts)
    return {column: replace(found, divergence=divergence.get(column)) for column, found in columns.items()}
