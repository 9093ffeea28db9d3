"""Tensors that are kept for a while: in memory up to a budget, and in files beyond it."""

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor


class Spill:
    """Keeps tensors, of which no more than a budget of bytes are in memory that cannot be given back.

    Further ones are mapped from files that have no name any more and end with the tensors. The kernel writes their
    pages out if memory is short, and reads them back.
    """

    def __init__(self, budget: int, folder: Path | None = None) -> None:
        """Begin with nothing kept.

        Args:
            budget: bytes.
            folder: the folder of the files; None: the system's folder for temporary files, which may be in memory.
        """
        self._room, self._folder = budget, folder

    def keep(self, tensor: Tensor) -> Tensor:
        """The tensor itself if it fits, otherwise a copy of it on the processor.

        Raises:
            OSError: the disk has no room for it.
        """
        if tensor.nbytes <= self._room:
            self._room -= tensor.nbytes
            return tensor
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".spilled-") as file:
            os.posix_fallocate(file.fileno(), 0, tensor.nbytes)  # later, a full disk would end the process
            flat = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
        return flat.view(tensor.shape).copy_(tensor)
