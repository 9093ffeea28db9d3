"""The prompts that a demo's bundle is measured on: contents and wordings that its calibration did not see."""

from collections.abc import Collection

from benchmarks.evaluation import unseen_prompts
from benchmarks.zoo import TASKS, Example
from benchmarks.zoo.real.tasks import TASKS as REAL_TASKS
from benchmarks.zoo.real.tasks import out_of_scope
from merge.evaluate import Line
from merge.experts import Example as Prompt


def shipped_lines(experts: Collection[str], per_task: int, seed: int = 0) -> list[Line] | None:
    """The prompts of a bundle whose experts are a zoo's tasks; None where they are not.

    Args:
        experts: the bundle's.
        per_task: prompts of each; the real zoo has as many that belong to no task, up to 100, for the router.
        seed: of their choice.
    """
    names = set(experts)
    if names and names <= {task.name for task in TASKS}:
        drawn = unseen_prompts(per_task, seed)
        return [_line(name, example, "exact") for name in sorted(names) for example in drawn[name]]
    tasks = [task for task in REAL_TASKS if task.name in names]
    if not names or len(tasks) < len(names):
        return None
    lines = [
        _line(task.name, example, task.metric)
        for task in tasks
        for example in task.examples("test", per_task, seed, "held_out")
    ]
    return [*lines, *(Line(None, Prompt(text), "") for text in out_of_scope("test")[:per_task])]


def _line(task: str, example: Example, metric: str) -> Line:
    return Line(task, Prompt(example.prompt), example.answer, metric)
