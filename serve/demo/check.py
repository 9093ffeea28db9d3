"""A demo's self-test: a real server in another process, asked over HTTP what its calibration did not see."""

from collections.abc import Collection
from functools import partial
from pathlib import Path

from merge.bundle import Bundle, open_bundle
from merge.evaluate import Evaluation, Line, References, Server, evaluate
from merge.experts import Example as Prompt
from merge.progress import Progress
from serve.child import serving
from serve.demo.zoo import TASKS, Example
from serve.demo.zoo.real.tasks import TASKS as REAL_TASKS
from serve.demo.zoo.real.tasks import out_of_scope


def unseen_prompts(per_task: int, seed: int = 0) -> dict[str, list[Example]]:
    """The zoo's unseen prompts: contents of the test split, in phrasings that calibration and the router never saw."""
    return {task.name: task.generate("test", per_task, seed, phrasings="held_out") for task in TASKS}


def shipped_lines(experts: Collection[str], per_task: int, seed: int = 0) -> list[Line] | None:
    """The prompts of a bundle whose experts are a zoo's tasks; None if they are not.

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


def check(bundle: Path, chat: bool, prompts: int) -> Evaluation:
    """Serve a demo's bundle on a free port and measure it over HTTP; progress goes to stderr.

    Args:
        bundle: the demo's.
        chat: whether it is asked with messages, or with plain prompts.
        prompts: unseen ones a task.

    Raises:
        ValueError: the server did not become ready, or the bundle is not a demo's.
    """
    opened = open_bundle(bundle)
    with serving(bundle) as child:
        return measured(Server(child.url, child.api_key), opened, chat, prompts, Progress())


def measured(server: Server, bundle: Bundle, chat: bool, prompts: int, progress: Progress | None = None) -> Evaluation:
    """Measure a demo's bundle, beside its base and its fine-tunes.

    Args:
        server: serves it.
        bundle: what it serves.
        chat: whether it is asked with messages, or with plain prompts.
        prompts: unseen ones a task.
        progress: receives the progress.

    Raises:
        ValueError: the bundle is not a demo's.
    """
    lines = shipped_lines(bundle.expert_names, prompts)
    if lines is None:
        raise ValueError(f"{bundle.path} is not the bundle of a demo")
    return evaluate(
        partial(server.ask, chat=chat),
        server.served(),
        lines,
        bundle=bundle,
        references=References(bundle, chat),
        progress=progress,
        name=bundle.manifest.name,
    )
