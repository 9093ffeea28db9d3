"""Tasks on scikit-learn's 1,797 digits of 8 × 8 pixels: other views of them, and other questions about them."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

TEST_SHARE = 4
"""One image in this many is for testing; its views are in no task's training."""

PERMUTATIONS = 12

Change = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""(images [n, 8, 8], digits [n], generator) to the task's (images, classes)."""


def digits() -> tuple[Tensor, Tensor]:
    """Images [1797, 8, 8] float32 in 0 to 1, and digits [1797] int64."""
    from sklearn.datasets import load_digits  # the extra `bench`; slow to import

    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32) / 16, torch.tensor(data.target, dtype=torch.int64)


def task_data(task: str) -> tuple[Tensor, Tensor]:
    """All of a task's images [n, 1, 8, 8] and classes [n], in the order of the digits; always the same."""
    images, numbers = digits()
    generator = torch.Generator().manual_seed(sum(map(ord, task)))
    changed, labels = CHANGES[task](images, numbers, generator)
    return changed[:, None].contiguous(), labels


def _noisy(images: Tensor, numbers: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return (images + 0.35 * torch.randn(images.shape, generator=generator)).clamp(0, 1), numbers


def _occluded(images: Tensor, numbers: Tensor, _generator: torch.Generator) -> tuple[Tensor, Tensor]:
    covered = images.clone()
    covered[:, :, 5:] = 0.5
    return covered, numbers


def _permuted(images: Tensor, numbers: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    order = torch.randperm(64, generator=generator)
    return images.reshape(-1, 64)[:, order].reshape(-1, 8, 8), numbers


CHANGES: Mapping[str, Change] = {
    "rotated": lambda images, numbers, _: (images.rot90(1, (1, 2)), numbers),
    "flipped": lambda images, numbers, _: (images.flip(1), numbers),
    "inverted": lambda images, numbers, _: (1 - images, numbers),
    "noisy": _noisy,
    "occluded": _occluded,
    "parity": lambda images, numbers, _: (images, numbers % 2),
    "above_four": lambda images, numbers, _: (images, (numbers > 4).long()),
    "permuted": _permuted,
    **{f"permuted_{i}": _permuted for i in range(1, PERMUTATIONS + 1)},
}
TASKS = tuple(name for name in CHANGES if not name.startswith("permuted_"))
POOL = tuple(name for name in CHANGES if name.startswith("permuted_"))
