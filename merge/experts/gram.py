"""Gram matrices of the inputs of linear layers: what the layers see on a task's prompts."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from merge.experts.calibration import Batch

Hook = Callable[[nn.Module, tuple[Any, ...]], None]


def linear_weights(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers of a model by the name of their weight (a tied head is called by its embedding's name)."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(module.weight)]: module for module in model.modules() if isinstance(module, nn.Linear)}


def gram_matrices(
    model: PreTrainedModel, batches: Sequence[Batch], wanted: Collection[str], budget: int = 4 << 30
) -> Iterator[tuple[str, Tensor]]:
    """Run calibration batches through a model and yield H = Σ x xᵀ for each wanted linear's inputs x.

    Layers are taken in groups whose matrices fit the budget, one pass over the batches a group, so memory is bounded by
    `budget` (but one matrix at least) whatever the model. Layers with the same input (q, k and v; gate and up) share
    one matrix.

    Args:
        model: the fine-tune.
        batches: padding is left out of the sums.
        wanted: names of weights, as in `linear_weights`.
        budget: bytes of matrices held at once.

    Yields:
        (weight name, [K, K] float32), in the model's order.
    """
    layers = {name: layer for name, layer in linear_weights(model).items() if name in wanted}
    group: dict[str, nn.Linear] = {}
    size = 0
    for name, layer in layers.items():
        needed = 4 * layer.in_features**2
        if group and size + needed > budget:
            yield from _collect(model, batches, group).items()
            group, size = {}, 0
        group[name] = layer
        size += needed
    if group:
        yield from _collect(model, batches, group).items()


@torch.inference_mode()
def _collect(model: PreTrainedModel, batches: Sequence[Batch], layers: dict[str, nn.Linear]) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    # The layers that read one tensor run one after another, so remembering the last input is enough to share its Gram
    # matrix. The tensor itself is kept: its address could otherwise be reused by the next one.
    last: tuple[Tensor, str] | None = None
    owner: dict[str, str] = {}
    current = batches[0]

    def hook_for(name: str) -> Hook:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            nonlocal last
            x: Tensor = inputs[0]
            if last is not None and last[0] is x:
                owner[name] = last[1]
                return
            last = (x, name)
            owner[name] = name
            rows = x[current.real] if x.shape[:2] == current.real.shape else x.flatten(0, -2)
            rows = rows.float()
            if name not in sums:
                sums[name] = torch.zeros(x.shape[-1], x.shape[-1])
            sums[name].addmm_(rows.T, rows)

        return hook

    # The output head is as wide as the vocabulary: it runs only where it is asked for.
    run = model if model.get_output_embeddings() in layers.values() else model.base_model  # type: ignore[no-untyped-call]
    handles = [layer.register_forward_pre_hook(hook_for(name)) for name, layer in layers.items()]
    try:
        for current in batches:
            run(input_ids=current.ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {name: sums[owner[name]] for name in layers}
