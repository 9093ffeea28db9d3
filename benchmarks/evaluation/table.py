"""The table of an evaluation."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from merge.wording import counted


@dataclass(frozen=True)
class TaskScores:
    """Exact match, 0 to 1.

    Attributes:
        fine_tune: the task's own checkpoint, run by transformers.
        backbone: the merged model without an expert.
        expert: the backbone with the task's expert, which the request names.
        routed: the same model with the expert that the router chose.
    """

    fine_tune: float
    backbone: float
    expert: float
    routed: float


@dataclass(frozen=True)
class Evaluation:
    """Scores of every task, and what the experts cost.

    Attributes:
        tasks: scores by task.
        prompts_per_task: how many prompts each score is the mean of.
        router_accuracy: share of all prompts that were routed to their own task's expert.
        expert_density: stored entries of an expert over parameters of the backbone, mean over the experts.
        expert_bytes_fraction: bytes of an expert's tensors over bytes of the backbone's, mean over the experts.
    """

    tasks: Mapping[str, TaskScores]
    prompts_per_task: int
    router_accuracy: float
    expert_density: float
    expert_bytes_fraction: float

    @property
    def average(self) -> TaskScores:
        """Mean over the tasks."""
        columns = [field.name for field in fields(TaskScores)]
        means = {name: sum(getattr(row, name) for row in self.tasks.values()) / len(self.tasks) for name in columns}
        return TaskScores(**means)

    def as_json(self) -> dict[str, Any]:
        """The document that `--json` prints."""
        return {
            "tasks": {name: _rounded(asdict(row)) for name, row in self.tasks.items()},
            "average": _rounded(asdict(self.average)),
            "prompts_per_task": self.prompts_per_task,
            **_rounded(
                {
                    "router_accuracy": self.router_accuracy,
                    "expert_density": self.expert_density,
                    "expert_bytes_fraction": self.expert_bytes_fraction,
                }
            ),
        }

    def as_text(self) -> str:
        """The table for people."""
        rows = [*self.tasks.items(), ("average", self.average)]
        width = max(len(name) for name, _ in rows)
        lines = [f"{'task':<{width}}  fine-tune  backbone  expert  routed"]
        for name, row in rows:
            lines.append(
                f"{name:<{width}}  {row.fine_tune:9.3f}  {row.backbone:8.3f}  {row.expert:6.3f}  {row.routed:6.3f}"
            )
        return "\n".join(
            [
                *lines,
                f"exact match on {counted(self.prompts_per_task, 'unseen prompt')} a task; "
                f"router accuracy {self.router_accuracy:.3f}",
                f"an expert holds {self.expert_density:.2%} of the backbone's entries in "
                f"{self.expert_bytes_fraction:.2%} of its bytes",
            ]
        )


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}
