"""What linear layers read: the inputs of a model's layers on calibration batches."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from merge.experts.calibration import Batch
from merge.experts.running import products

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Hook = Callable[[nn.Module, tuple[Any, ...]], None]
Group = tuple[str, ...]
"""Names of weights whose layers read one and the same tensor: q, k and v; gate and up; the others alone."""


class _Enough(Exception):  # noqa: N818 (not an error)
    """Every wanted input of a batch has been seen: the rest of the model need not run."""


def linear_weights(model: "PreTrainedModel") -> dict[str, nn.Linear]:
    """The linear layers of a model by the name of their weight (a tied head is called by its embedding's name)."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(module.weight)]: module for module in model.modules() if isinstance(module, nn.Linear)}


def input_groups(model: "PreTrainedModel", batch: Batch, wanted: Collection[str]) -> list[Group]:
    """Group the wanted linear weights by the tensor that their layers read.

    Returns:
        The groups in the order in which the model runs them. Weights that no linear layer uses are in none.
    """
    groups: list[list[str]] = []
    # The tensor itself is remembered, not its address, which the next one could reuse.
    last: Tensor | None = None

    def hook_for(name: str) -> Hook:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            nonlocal last
            if inputs[0] is not last:
                groups.append([])
                last = inputs[0]
            groups[-1].append(name)

        return hook

    hooks = {layer: hook_for(name) for name, layer in linear_weights(model).items() if name in wanted}
    _hooked(hooks, lambda: _run_whole(model, batch, hooks.keys()))
    return [tuple(group) for group in groups]


def layer_inputs(model: "PreTrainedModel", batch: Batch, names: Collection[str]) -> dict[str, Tensor]:
    """Run a batch as far as needed.

    Args:
        model: the decoder.
        batch: B sequences.
        names: weights of linear layers.

    Returns:
        For each name [R, K] float32, its layer's inputs at the batch's R real positions.
    """
    layers = linear_weights(model)
    wanted = {name: layers[name] for name in names}
    return recorded(wanted, batch, lambda: _run_whole(model, batch, wanted.values()))


def recorded(layers: Mapping[str, nn.Linear], batch: Batch, run: Callable[[], object]) -> dict[str, Tensor]:
    """What linear layers read while `run` runs the batch; `run` ends as soon as all are known.

    Returns:
        For each name [R, K] float32, at the batch's R real positions.
    """
    found: dict[str, Tensor] = {}

    def hook_for(name: str) -> Hook:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            found[name] = inputs[0][batch.real].float()
            if len(found) == len(layers):
                raise _Enough

        return hook

    _hooked({layers[name]: hook_for(name) for name in layers}, run)
    return found


def grouped_by_bytes(groups: Sequence[Group], widths: Sequence[int], rows: int, budget: int) -> list[list[Group]]:
    """Split groups into consecutive runs whose recorded inputs fit a budget.

    Args:
        groups: as from `input_groups`.
        widths: K of each group.
        rows: real positions of all batches.
        budget: bytes; a run has one group at least.
    """
    runs: list[list[Group]] = []
    room = 0
    for group, width in zip(groups, widths, strict=True):
        needed = 4 * rows * width
        if not runs or needed > room:
            runs.append([])
            room = budget
        runs[-1].append(group)
        room -= needed
    return runs


@torch.inference_mode()
def _hooked(hooks: Mapping[nn.Linear, Hook], run: Callable[[], object]) -> None:
    handles = [layer.register_forward_pre_hook(hook) for layer, hook in hooks.items()]
    try:
        run()
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()


def _run_whole(model: "PreTrainedModel", batch: Batch, layers: Collection[nn.Linear]) -> None:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    # The output head is as wide as the vocabulary: it runs only if its inputs are needed.
    run = model if any(layer is head for layer in layers) else model.base_model
    with products(model):
        run(**batch.arguments)
