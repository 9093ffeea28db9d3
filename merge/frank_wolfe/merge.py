"""The Frank-Wolfe loop."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor

from merge.checkpoint import Checkpoint, CheckpointWriter, TensorSpec, read_header
from merge.frank_wolfe.config import FrankWolfeConfig
from merge.frank_wolfe.hard import hard_step
from merge.frank_wolfe.objective import Objective
from merge.frank_wolfe.search import Search, Step
from merge.frank_wolfe.soft import soft_step
from merge.frank_wolfe.vertices import Layout, Vertices
from merge.methods import BoundMethod, TaskVectors
from merge.task_vectors import task_vectors


@dataclass(frozen=True)
class FrankWolfeMerge:
    """The outcome.

    Attributes:
        tensors: the merged tensors that moved, float32.
        vertices: names of the vertices, the starting point first.
        coefficients: [V, G] float64, at least 0, each column summing to 1: what the tensors are a combination of. A
            column is the whole model or, with `granularity: layer`, a tensor in the order of `tensors`.
        steps: what each step did.
    """

    tensors: Mapping[str, Tensor]
    vertices: tuple[str, ...]
    coefficients: Tensor
    steps: tuple[Step, ...]

    def method(self, name: str, base: Tensor, _vectors: TaskVectors) -> Tensor:
        """The merged tensor, or the base's if it did not move: a `BoundMethod` for the checkpoint writer."""
        return self.tensors[name].to(base.dtype) if name in self.tensors else base

    def shares(self) -> dict[str, float]:
        """Each vertex's coefficient, the mean over the columns."""
        return dict(zip(self.vertices, self.coefficients.mean(1).tolist(), strict=True))


def merge_frank_wolfe(
    base: Checkpoint,
    fine_tunes: Mapping[str, Checkpoint],
    objective: Objective,
    config: FrankWolfeConfig,
    progress: Callable[[Step], None] = lambda _: None,
) -> FrankWolfeMerge:
    """FW-Merging (Chen et al., ICCV 2025, arXiv 2503.12649) in constant memory.

    Semantics: minimise l(θ) over conv{θ_init, v_1 … v_n}, v_i the fine-tunes or what `local_update` makes of them.
    Each step: s_t = argmin_v ⟨∇l(θ_t), v⟩, then θ_{t+1} = θ_t + γ_t (s_t − θ_t) (`hard`); or several s_j are chosen,
    and θ_{t+1} is the combination of them and of the vertices already in use that has the least l, by projected
    gradient on the simplex (`soft`, see `fit_coefficients`). With `granularity: layer` every tensor has its own s_t and
    its own coefficients: block-coordinate Frank-Wolfe.

    A tensor whose gradient is zero does not move, and the search ends if nothing descends. The released code's
    branch that sets a tensor to zeros if its best cosine is not negative is left out: that sign depends on the gradient
    and the weights and not on the fine-tune, and zeros are not a vertex.

    Memory: one iterate, one gradient and a few tensors, however large the pool: vertices are read from disk tensor by
    tensor, as often as needed, and a number is kept for each vertex and tensor. A starting point made by another method
    lies on disk meanwhile, in a temporary directory of one float32 model's size.

    Args:
        base: θ₀.
        fine_tunes: θ_k by name, compatible with the base. Their order changes nothing, to the last bit.
        objective: l.
        config: the recipe's parameters.
        progress: called after each step.

    Raises:
        ValueError: no tensor is included, or the objective has no finite gradient of one that is.
    """
    names = [name for name in sorted(base.tensors) if _included(name, config)]
    if not names:
        raise ValueError(f"include {list(config.include)} and exclude {list(config.exclude)} leave no tensor to merge")
    layout = Layout(names, config.granularity)
    with tempfile.TemporaryDirectory(prefix="frank-wolfe-") as scratch:
        initial = base
        if config.init != "base":
            initial = _write_initial(Path(scratch), base, fine_tunes, names, config.init.bound())
        local_update = None if config.local_update is None else config.local_update.bound()
        vertices = Vertices(base, fine_tunes, initial, local_update)
        search = Search.start(vertices, layout, objective, {name: base.tensors[name].shape for name in names})
        steps: list[Step] = []
        for t in range(config.steps):
            step = (soft_step if config.variant == "soft" else hard_step)(search, t, config)
            steps.append(step)
            progress(step)
            if step.finished:
                break
        return FrankWolfeMerge(search.point, vertices.names, search.coefficients, tuple(steps))


def _included(name: str, config: FrankWolfeConfig) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in config.include) and not any(
        fnmatchcase(name, pattern) for pattern in config.exclude
    )


def _write_initial(
    directory: Path, base: Checkpoint, fine_tunes: Mapping[str, Checkpoint], names: list[str], method: BoundMethod
) -> Checkpoint:
    specs = [TensorSpec(name, torch.float32, base.tensors[name].shape) for name in names]
    with CheckpointWriter(directory, specs, shard_bytes=1 << 62) as writer:
        for name in writer.order:
            origin = base.tensor(name, torch.float32)
            writer.write(name, method(name, origin, task_vectors(name, base, fine_tunes, origin)))
    (file,) = directory.glob("*.safetensors")
    return Checkpoint(directory, base.config, read_header(file), device=base.device)
