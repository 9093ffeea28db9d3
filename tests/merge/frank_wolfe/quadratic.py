"""A quadratic loss over small checkpoints, and its minimum by brute force."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from merge.checkpoint import Checkpoint, CheckpointWriter, TensorSpec, open_checkpoint

SHAPES = {"a": (3, 4), "b": (5,), "c": (2, 2, 2)}
SIZE = 25


def unflatten(flat: Tensor) -> dict[str, Tensor]:
    parts = flat.float().split([torch.Size(shape).numel() for shape in SHAPES.values()])
    return {name: part.reshape(shape) for (name, shape), part in zip(SHAPES.items(), parts, strict=True)}


def flatten(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].reshape(-1) for name in SHAPES]).double()


def save(path: Path, flat: Tensor) -> Checkpoint:
    path.mkdir()
    (path / "config.json").write_text("{}")
    tensors = unflatten(flat)
    with CheckpointWriter(path, [TensorSpec(name, torch.float32, SHAPES[name]) for name in tensors]) as writer:
        for name in writer.order:
            writer.write(name, tensors[name])
    return open_checkpoint(path)


class Quadratic:
    """The mean over tasks of ½ Σ_i curvature_i (θ_i − target_i)²."""

    def __init__(self, targets: Mapping[str, Tensor], curvature: Tensor) -> None:
        self.targets = targets
        self.curvature = curvature

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(sorted(self.targets))

    def at(self, flat: Tensor) -> float:
        losses = [(self.curvature * (flat - target).square()).sum() / 2 for target in self.targets.values()]
        return float(sum(losses) / len(losses))

    def loss(self, parameters: Mapping[str, Tensor]) -> float:
        return self.at(self._whole(parameters))

    def _whole(self, parameters: Mapping[str, Tensor]) -> Tensor:
        zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
        return flatten(zeros | dict(parameters))

    def loss_and_gradient(
        self, parameters: Mapping[str, Tensor], task: str | None = None
    ) -> tuple[float, Mapping[str, Tensor]]:
        chosen = Quadratic(self.targets if task is None else {task: self.targets[task]}, self.curvature)
        flat = self._whole(parameters)
        mean = torch.stack(list(chosen.targets.values())).mean(0)
        return chosen.at(flat), unflatten(self.curvature * (flat - mean))


def brute_force(objective: Quadratic, corners: Sequence[Tensor]) -> tuple[Tensor, float]:
    """The minimum over the hull: of every face, the stationary point if it is inside."""
    center = torch.stack(list(objective.targets.values())).mean(0)
    best, lowest = corners[0], objective.at(corners[0])
    for count in range(1, len(corners) + 1):
        for face in combinations(corners, count):
            edges = torch.stack([corner - face[0] for corner in face[1:]]) if count > 1 else torch.zeros(0, SIZE)
            edges = edges.double()
            system = (edges * objective.curvature) @ edges.T
            inside = torch.linalg.lstsq(system, (edges * objective.curvature) @ (center - face[0])).solution
            if bool((inside >= -1e-12).all()) and float(inside.sum()) <= 1 + 1e-12:
                point = face[0] + inside @ edges
                if objective.at(point) < lowest:
                    best, lowest = point, objective.at(point)
    return best, lowest


class Case:
    """A base, four relevant fine-tunes and a loss whose minimum is inside a face of their hull or beyond it."""

    def __init__(self, folder: Path, seed: int = 0, irrelevant: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        origin = torch.randn(SIZE, generator=generator).double()
        self.curvature = 0.2 + torch.rand(SIZE, generator=generator).double()
        # The relevant fine-tunes move in the first half of the coordinates, the irrelevant ones in the second.
        half = torch.arange(SIZE) < SIZE // 2
        steps = {f"t{i}": torch.randn(SIZE, generator=generator).double() * half for i in range(4)}
        # Rounded as they will be stored, so that the brute force sees the same corners.
        self.base = flatten(unflatten(origin))
        self.corners = {name: flatten(unflatten(origin + step)) for name, step in steps.items()}
        self.noise = {
            f"noise{i}": flatten(unflatten(origin + 5 * torch.randn(SIZE, generator=generator).double() * ~half))
            for i in range(irrelevant)
        }
        self.objective = Quadratic(
            {name: self.base + 1.5 * (corner - self.base) for name, corner in self.corners.items()}, self.curvature
        )
        self.start = save(folder / "base", self.base)
        self.fine_tunes = {name: save(folder / name, flat) for name, flat in {**self.noise, **self.corners}.items()}

    def minimum(self) -> tuple[Tensor, float]:
        return brute_force(self.objective, [self.base, *self.corners.values()])

    def diameter(self) -> float:
        """Squared, in the norm of the curvature, of the relevant hull."""
        points = [self.base, *self.corners.values()]
        return max(float((self.curvature * (p - q).square()).sum()) for p, q in combinations(points, 2))
