"""What an evaluation found: scores of every task and model, the router's choices, and what experts cost."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from merge.evaluate.divergence import Divergence

COLUMNS = ("fine_tune", "base", "backbone", "expert", "routed")
"""The models that answer: the task's own checkpoint, what it was fine-tuned from, the merged model without an expert,
with the task's expert, and with the expert that the router chose."""

NONE = "none"
"""The task of prompts that belong to no expert."""


@dataclass(frozen=True)
class Answers:
    """One model's replies to one task's prompts.

    Attributes:
        score: mean of the metric, 0 to 1.
        tokens: of a reply, the mean.
        divergence: from the fine-tune; None if it was not measured.
    """

    score: float
    tokens: float
    divergence: Divergence | None = None


@dataclass(frozen=True)
class TaskResult:
    """One task.

    Attributes:
        prompts: how many.
        metric: how replies were judged; several are joined by commas.
        prompt_tokens: of a prompt, the mean.
        answers: by column; those that could not be asked are left out.
        router_accuracy: share of the prompts that were routed to the task's own expert; None without a router.
        expert_bytes: of the expert's tensors; None if the bundle is not available.
    """

    prompts: int
    metric: str
    prompt_tokens: float
    answers: Mapping[str, Answers]
    router_accuracy: float | None
    expert_bytes: int | None

    def score(self, column: str) -> float | None:
        """A column's score; None if it was not asked."""
        found = self.answers.get(column)
        return None if found is None else found.score

    def as_json(self) -> dict[str, Any]:
        """The task's part of the document."""
        return {
            **{column: _rounded(self.score(column)) for column in COLUMNS},
            "prompts": self.prompts,
            "metric": self.metric,
            "router_accuracy": _rounded(self.router_accuracy),
            "prompt_tokens": round(self.prompt_tokens, 2),
            "reply_tokens": {column: round(found.tokens, 2) for column, found in self.answers.items()},
            "divergence": {
                column: {key: round(value, 6) for key, value in asdict(found.divergence).items()}
                for column, found in self.answers.items()
                if found.divergence is not None
            },
            "expert_bytes": self.expert_bytes,
        }


@dataclass(frozen=True)
class Routes:
    """Where prompts went.

    Attributes:
        tasks: rows, the tasks that the prompts belong to; "none" stands for the backbone.
        choices: columns, what ran.
        counts: how many.
    """

    tasks: tuple[str, ...]
    choices: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Evaluation:
    """A bundle, or a running server, measured.

    Attributes:
        name: what was measured.
        tasks: by name.
        routes: of all prompts; None without a router.
        expert_density: stored entries of an expert over parameters of the backbone, mean over the experts.
        expert_bytes_fraction: bytes of an expert over the backbone's unquantised bytes, mean over the experts.
        notes: what could not be measured and why.
    """

    name: str
    tasks: Mapping[str, TaskResult]
    routes: Routes | None = None
    expert_density: float | None = None
    expert_bytes_fraction: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def average(self) -> dict[str, float | None]:
        """Mean of each column over the tasks; None if some task lacks it."""
        return {column: _mean([task.score(column) for task in self.tasks.values()]) for column in COLUMNS}

    @property
    def router_accuracy(self) -> float | None:
        """Share of all prompts of experts that were routed to their own."""
        prompts = sum(task.prompts for task in self.tasks.values())
        shares = [task.router_accuracy for task in self.tasks.values()]
        if None in shares:
            return None
        return sum((task.router_accuracy or 0.0) * task.prompts for task in self.tasks.values()) / prompts

    def share(self, column: str) -> float | None:
        """A column's average over the fine-tunes'."""
        average = self.average
        found, whole = average[column], average["fine_tune"]
        return found / whole if found is not None and whole else None

    def as_json(self) -> dict[str, Any]:
        """The document that `--json` prints."""
        counts = {task.prompts for task in self.tasks.values()}
        return {
            "name": self.name,
            "tasks": {name: task.as_json() for name, task in self.tasks.items()},
            "average": {column: _rounded(score) for column, score in self.average.items()},
            "prompts": sum(task.prompts for task in self.tasks.values()),
            "prompts_per_task": counts.pop() if len(counts) == 1 else None,
            "router_accuracy": _rounded(self.router_accuracy),
            "routes": None if self.routes is None else asdict(self.routes),
            "expert_density": _rounded(self.expert_density),
            "expert_bytes_fraction": _rounded(self.expert_bytes_fraction),
            "notes": list(self.notes),
        }


def _mean(scores: list[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known and len(known) == len(scores) else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
