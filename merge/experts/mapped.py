"""A decoder whose weights stay in their checkpoint's files.

On the processor a weight that is stored in the precision of the products is mapped from its file: the kernel reads its
pages when a layer multiplies by it, and gives them up if memory is short. Others (rounded to bfloat16, quantised,
adapted) are held up to a limit; beyond it a LoRA is added to what its layer computes, and every other weight is read
again for each call. So a decoder takes a few gigabytes of memory beyond the page cache, however large it is. On a GPU
no weight is mapped: a share of its memory holds as many as fit, and the others are copied to it for each call.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from merge.checkpoint import Checkpoint
from merge.device import available_bytes
from merge.experts.placed import Fetched, Hooked, Product
from merge.experts.running import faster_rounded, parameters_of
from merge.lora import AdaptedCheckpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HELD = 1 << 30
"""Bytes of converted weights that a model keeps on the processor."""

SHARE = 4
"""On a GPU a model keeps weights in this part of what is free: there are two models, and the rest is for moments."""


@contextmanager
def mapped(model: "PreTrainedModel", checkpoint: Checkpoint, held: int | None = None) -> Iterator[None]:
    """Let a model have a checkpoint's weights for the length of a block.

    Linear weights are in bfloat16 if products in bfloat16 are faster, else in float32. The residual stream is in
    float32, and so is a matrix that is embedding and head.

    Args:
        model: its own parameters may be on the meta device. It has them again afterwards.
        checkpoint: the weights.
        held: bytes of linear weights that are converted or copied once and kept; None: `HELD`, or the GPU's share.

    Raises:
        CheckpointError: the names do not agree, or a tensor cannot be read.
    """
    if held is None:
        on_processor = checkpoint.device.type == "cpu"
        held = HELD if on_processor else available_bytes(checkpoint.device) // SHARE
    placing = _Placing(model, checkpoint, held)
    try:
        placing.fill()
        yield
    finally:
        placing.undo()


class _Placing:
    def __init__(self, model: "PreTrainedModel", checkpoint: Checkpoint, held: int) -> None:
        self._model, self._checkpoint, self._room = model, checkpoint, held
        self._product = torch.bfloat16 if faster_rounded(model, checkpoint.device) else torch.float32
        self._owners: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for leaf, parameter in module._parameters.items():
                if parameter is not None:
                    self._owners.setdefault(id(parameter), []).append((module, leaf))
        self._before: list[tuple[nn.Module, str, nn.Parameter]] = []
        self._undone: list[Callable[[], object]] = []

    def fill(self) -> None:
        for name, parameter in parameters_of(self._model, self._checkpoint).items():
            owners = self._owners[id(parameter)]
            modules = [module for module, _ in owners]
            if all(type(module) is nn.Linear for module in modules):
                self._linear(name, parameter, modules)
            elif len(modules) == 1 and type(modules[0]) is nn.Embedding:
                self._embedding(name, parameter, modules[0])
            else:
                self._put(parameter, self._checkpoint.tensor(name, torch.float32))

    def undo(self) -> None:
        for undone in reversed(self._undone):
            undone()
        for module, leaf, parameter in self._before:
            module._parameters[leaf] = parameter

    def _linear(self, name: str, parameter: nn.Parameter, modules: list[nn.Module]) -> None:
        checkpoint = self._checkpoint
        if self._is_mapped(checkpoint, name, self._product):
            self._put(parameter, checkpoint.tensor(name, check=False))
            return
        size = parameter.numel() * self._product.itemsize
        if size <= self._room:
            self._room -= size
            self._put(parameter, checkpoint.tensor(name, self._product))
            return
        if isinstance(checkpoint, AdaptedCheckpoint) and self._is_mapped(checkpoint.model, name, self._product):
            factors = checkpoint.stored_factors(name, torch.float32)
            if factors is not None:
                left, right, scale = factors
                weight = self._put(parameter, checkpoint.model.tensor(name, check=False))
                self._undone.append(Hooked(self._model, weight, Product(left * scale, right)).restore)
                return
        meta = self._put(parameter, torch.empty(parameter.shape, device="meta", dtype=self._product))
        for module in modules:
            assert isinstance(module, nn.Linear)
            fetched = Fetched(module, lambda: checkpoint.tensor(name, self._product, check=False))
            assert module.weight is meta
            self._undone.append(fetched.undo)

    def _embedding(self, name: str, parameter: nn.Parameter, module: nn.Module) -> None:
        stored = self._checkpoint.tensors[name].dtype
        if not self._is_stored_so(self._checkpoint, name, stored):
            self._put(parameter, self._checkpoint.tensor(name, torch.float32))
            return
        self._put(parameter, self._checkpoint.tensor(name, check=False))
        handle: RemovableHandle = module.register_forward_hook(_in_float32)
        self._undone.append(handle.remove)

    def _put(self, parameter: nn.Parameter, tensor: Tensor) -> nn.Parameter:
        found = nn.Parameter(tensor, requires_grad=False)
        for module, leaf in self._owners[id(parameter)]:
            self._before.append((module, leaf, parameter))
            module._parameters[leaf] = found
        return found

    def _is_mapped(self, checkpoint: Checkpoint, name: str, dtype: torch.dtype) -> bool:
        return checkpoint.is_mapped(name) and self._is_stored_so(checkpoint, name, dtype)

    def _is_stored_so(self, checkpoint: Checkpoint, name: str, dtype: torch.dtype) -> bool:
        if isinstance(checkpoint, AdaptedCheckpoint):
            return not checkpoint.changes(name) and self._is_stored_so(checkpoint.model, name, dtype)
        return name not in checkpoint.quantised and checkpoint.tensors[name].dtype == dtype


def _in_float32(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.float()
