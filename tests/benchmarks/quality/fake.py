"""A domain of one matrix: each fine-tune is right about one row, and the base about none."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.quality.domain import Residual, Split, Weights
from merge.checkpoint import Checkpoint, open_checkpoint

EXAMPLES = 8


class Distance:
    """Mean over the tasks of |W_k − row k's goal|²."""

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = tuple(sorted(tasks))

    def loss(self, parameters: Weights) -> float:
        return self.loss_and_gradient(parameters)[0]

    def loss_and_gradient(self, parameters: Weights, task: str | None = None) -> tuple[float, Mapping[str, Tensor]]:
        chosen = self.tasks if task is None else (task,)
        gradient = torch.zeros_like(parameters["w"])
        total = 0.0
        for name in chosen:
            row = int(name[1:])
            gap = parameters["w"][row] - 1
            total += float(gap.square().mean()) / len(chosen)
            gradient[row] += 2 * gap / gap.numel() / len(chosen)
        return total, {"w": gradient}


class FakeDomain:
    """Tasks t0 … t5, and others in the pool that spoil every row. What is validated can differ from what is tested."""

    name = "fake"
    tasks = tuple(f"t{i}" for i in range(6))
    pool = tuple(f"x{i}" for i in range(14))
    aside: tuple[str, ...] = ()
    calibrated_as = "by the answer"
    settings: Mapping[str, object] = {}

    def __init__(self, folder: Path, lucky: float | None = None) -> None:
        self._folder = folder
        self._lucky = lucky
        self.asked: list[Split] = []

    def base(self) -> Checkpoint:
        return self._checkpoint("base", torch.zeros(6, 10))

    def fine_tune(self, task: str, seed: int) -> Checkpoint:
        weight = torch.zeros(6, 10)
        if task in self.tasks:
            weight[int(task[1:])] = 1
        else:
            weight -= 1 + 0.1 * int(task[1:])
        return self._checkpoint(task, weight)

    def answers(self, weights: Weights, task: str, seed: int, split: Split) -> list[bool]:
        self.asked.append(split)
        mean = float(weights["w"][int(task[1:])].mean())
        if split == "test" and self._lucky is not None:
            return [abs(mean - self._lucky) < 0.05] * EXAMPLES
        return [i < round(EXAMPLES * mean) for i in range(EXAMPLES)]

    def objective(self, tasks: Sequence[str], seed: int) -> Distance:
        return Distance(tasks)

    def calibrated(self, backbone: Weights, task: str, seed: int, density: float) -> Residual:
        k = max(1, round(density * 10))
        index = torch.arange(k).expand(6, k)
        wanted = self.fine_tune(task, seed).tensor("w") - backbone["w"]
        return Residual({"w": index}, {"w": wanted.gather(1, index)}, {})

    def requests(self, seed: int) -> None:
        return None

    def head_bytes(self) -> float:
        return 0.0

    def _checkpoint(self, name: str, weight: Tensor) -> Checkpoint:
        path = self._folder / name
        if not path.is_dir():
            path.mkdir(parents=True)
            (path / "config.json").write_text("{}")
            save_file({"w": weight}, path / "model.safetensors")
        return open_checkpoint(path)
