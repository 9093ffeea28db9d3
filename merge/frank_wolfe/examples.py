"""The examples of the tasks that Frank-Wolfe shall be good at."""

from collections.abc import Collection
from pathlib import Path

from merge.experts.examples import CalibrationError, Example, read_lines


def read_target_examples(file: Path, tasks: Collection[str] | None, answered: bool) -> dict[str, list[Example]]:
    """Read the examples of some tasks, which need not be the recipe's.

    Args:
        file: the calibration file.
        tasks: the tasks wanted; None: all that are there.
        answered: an answer is needed.

    Returns:
        The examples by task, in the order of the tasks' names, within a task in the file's order.

    Raises:
        CalibrationError: no such file, a malformed line, an example without a needed answer, or a task without an
            example.
    """
    found: dict[str, list[Example]] = {}
    for place, task, example in read_lines(file):
        if answered and not example.answer:
            raise CalibrationError(
                f"{place} must be an object with the strings task, prompt, answer, none of them empty; "
                "an assistant message that ends the messages is an answer, too"
            )
        found.setdefault(task, []).append(example)
    for task in found if tasks is None else tasks:
        if task not in found:
            raise CalibrationError(f"{file} has no prompt of the target task {task!r}; it has {', '.join(found)}")
    wanted = sorted(found if tasks is None else set(tasks))
    if not wanted:
        raise CalibrationError(f"{file} is empty: a loss needs prompts")
    return {task: found[task] for task in wanted}
