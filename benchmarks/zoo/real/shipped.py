"""The LoRA fine-tunes of the real zoo that the repository has."""

from pathlib import Path

from benchmarks.zoo.real.tasks import TASKS


def adapter_dirs() -> dict[str, Path]:
    """The directory of each task's LoRA, as PEFT stores it."""
    return {task.name: Path(__file__).with_name("adapters") / task.name for task in TASKS}
