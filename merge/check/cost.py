"""What a merge will take: time from short measurements, memory and disk from the sizes of its parts."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import ceil, prod

import torch

from merge.bundle import available_cores
from merge.check.inputs import Inputs
from merge.check.place import bundle_bytes
from merge.experts import usual_workers
from merge.experts.distill import Settings
from merge.experts.extract import BATCH
from merge.experts.low_rank import OVERSAMPLED, PASSES
from merge.lora import AdaptedCheckpoint
from merge.methods import TaskVectors
from merge.methods.vectors import Factors, is_excluded
from merge.task_vectors import is_unchanged
from merge.wording import size

CROP = 512
"""Rows and columns of a matrix that the method is timed on."""

DECOMPOSE = ("iso_c", "tsv_m", "knots")
"""Methods that decompose matrices: their time grows with rows · columns · the smaller of the two."""

PASSES_OF_A_FIT = 9
"""Forward passes over the prompts that calibration takes besides replies and distillation: the fine-tune's outputs, two
for moments, three of each model for fitting parts again; and those that divergences are measured on."""

BACKWARD = 3
"""A step of distillation, in forward passes of its batch."""

DENSE_RANK = 200
"""Directions that are computed of each weight, about, if it is not known as factors."""


@dataclass(frozen=True)
class Cost:
    """An estimate for this machine as it is now.

    Attributes:
        seconds: wall-clock time by stage.
        memory_bytes: at most, beyond the page cache.
        disk_bytes: of the bundle, at most.
    """

    seconds: Mapping[str, float]
    memory_bytes: int
    disk_bytes: int

    def summary(self) -> str:
        """The figures in a line."""
        stages = ", ".join(f"{name} {_duration(found)}" for name, found in self.seconds.items())
        return (
            f"about {_duration(sum(self.seconds.values()))} ({stages}), {size(self.memory_bytes)} of memory, "
            f"{size(self.disk_bytes)} on disk"
        )


def measured_cost(inputs: Inputs, workers: int | None = None) -> Cost:
    """Estimate what merging a recipe takes, from measurements of some tenths of a second.

    Reading files is counted as hashing them: the inputs are hashed, and the bundle twice. Frank-Wolfe and the choice of
    λ, which run whole models, are not in it.

    Args:
        inputs: the recipe's.
        workers: tensors merged and experts cut at a time; None: as many as fit.
    """
    job = inputs.job_bytes()
    width = workers or usual_workers(job, len(inputs.fine_tunes))
    hashing = _hash_seconds()
    read = inputs.base.nbytes + sum(_own_bytes(item) for item in inputs.fine_tunes.values())
    disk = bundle_bytes(inputs)
    seconds = {
        "inputs": read * hashing,
        "backbone": _backbone_seconds(inputs) / (workers or available_cores()),
        "experts": _expert_seconds(inputs),
        "bundle": 2 * disk * hashing,
    }
    return Cost(seconds, job * width, disk)


def _own_bytes(checkpoint: object) -> int:
    if isinstance(checkpoint, AdaptedCheckpoint):
        return sum(info.nbytes for info in checkpoint.adapter.tensors.values())
    return int(getattr(checkpoint, "nbytes", 0))


def _timed(work: Callable[[], object]) -> float:
    """Seconds of the faster of two runs."""
    found = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def _hash_seconds() -> float:
    """Seconds of hashing a byte."""
    block = bytes(1 << 22)
    return _timed(lambda: sha256(block).digest()) / len(block)


def _product_seconds(dtype: torch.dtype = torch.float32) -> float:
    """Seconds of a multiplication and an addition in a matrix product by all threads."""
    a, b = torch.ones(512, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    return _timed(lambda: a @ b) / (512 * 1024 * 1024)


def _backbone_seconds(inputs: Inputs) -> float:
    """Seconds of one thread: the method on a piece of a typical matrix, and the conversion of unchanged tensors."""
    recipe, merged = inputs.recipe, inputs.merged().tensors
    if recipe.frank_wolfe() is not None:
        return 0.0
    method = recipe.method()
    matrices = {name: info.shape for name, info in merged.items() if len(info.shape) == 2}
    changed = {
        name: shape
        for name, shape in matrices.items()
        if not all(is_unchanged(name, inputs.base, item) for item in inputs.fine_tunes.values())
    }
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        copied = torch.ones(CROP, CROP, dtype=torch.bfloat16)
        plain = _timed(lambda: copied.float().to(torch.bfloat16)) / copied.numel()
        total = 4 * plain * sum(prod(info.shape) for name, info in inputs.base.tensors.items() if name not in changed)
        typical = [name for name in changed if not is_excluded(name, ("*embed*", "lm_head*"))] or list(changed)
        if not typical:
            return total
        name = sorted(typical, key=lambda item: prod(changed[item]))[len(typical) // 2]
        rows, columns = (min(CROP, size) for size in changed[name])
        origin = inputs.base.tensor(name, torch.float32, rows=slice(0, rows))[:, :columns].contiguous()

        def work() -> object:
            return method(name, origin, _cropped(inputs, name, origin)).to(torch.bfloat16)

        once = _timed(work)
    finally:
        torch.set_num_threads(before)
    decomposed = recipe.merge_method in DECOMPOSE and any(
        not isinstance(item, AdaptedCheckpoint) for item in inputs.fine_tunes.values()
    )
    for shape in changed.values():
        share = prod(shape) / origin.numel()
        total += once * share * (min(shape) / min(origin.shape) if decomposed else 1.0)
    return total


def _cropped(inputs: Inputs, name: str, origin: torch.Tensor) -> TaskVectors:
    """The task vectors of a corner of a matrix."""
    rows, columns = slice(0, origin.shape[0]), origin.shape[1]

    def read(task: str) -> torch.Tensor:
        return inputs.fine_tunes[task].tensor(name, torch.float32, rows=rows)[:, :columns] - origin

    def factors(task: str) -> Factors | None:
        item = inputs.fine_tunes[task]
        found = item.factors(name, torch.float32) if isinstance(item, AdaptedCheckpoint) else None
        return None if found is None else Factors(found[0][rows], found[1][:, :columns])

    return TaskVectors(list(inputs.fine_tunes), read, factors=factors)


def _expert_seconds(inputs: Inputs) -> float:
    """Seconds of all experts: decompositions, and runs of the models if there are prompts."""
    product = _product_seconds()
    total = 0.0
    for task, item in inputs.fine_tunes.items():
        shapes = [
            info.shape
            for name, info in inputs.merged().tensors.items()
            if len(info.shape) == 2 and not is_unchanged(name, inputs.base, item)
        ]
        lora = isinstance(item, AdaptedCheckpoint) and inputs.recipe.merge_method == "base"
        width = (1 if lora else 2 * (PASSES + 1)) * (DENSE_RANK + OVERSAMPLED)
        total += sum(prod(shape) for shape in shapes) * width * product
        if inputs.experts.needs_prompts and inputs.prompts is not None:
            total += _calibration_seconds(inputs, task, product)
    return total


def _calibration_seconds(inputs: Inputs, task: str, product: float) -> float:
    settings = inputs.recipe.calibration
    assert settings is not None  # there are prompts
    prompts = inputs.calibration_tokens()[0][task]
    tokens = sum(map(len, prompts)) + len(prompts) * settings.answer_tokens
    parameters = sum(prod(info.shape) for name, info in inputs.base.tensors.items() if "embed" not in name)
    run = parameters * tokens * product
    steps = Settings(inputs.experts.distill or 0).steps
    batches = max(1, ceil(len(prompts) / BATCH))
    moments = sum(info.shape[1] ** 2 for info in inputs.merged().tensors.values() if len(info.shape) == 2)
    # A reply's token reads every weight: as slow as thirty tokens at once.
    replies = 30 * parameters * product * settings.answer_tokens * ceil(len(prompts) / 64)
    return replies + run * (PASSES_OF_A_FIT + BACKWARD * steps / batches) + 3 * moments * tokens * product


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
