"""A stored expert in a model that holds its backbone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from merge.bundle import Expert
from merge.experts.placed import Hooked, Product

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def added(model: "PreTrainedModel", expert: Expert | None) -> Iterator[None]:
    """Have an expert in a model for the length of a block: low-rank parts beside the weights, as the server has them.

    Entries and 1-D deltas are added to the model's own weights, and rounded to their dtype.

    Args:
        model: a decoder that holds the backbone's weights.
        expert: None adds nothing.
    """
    if expert is None:
        yield
        return
    parameters, kept, hooked = dict(model.named_parameters()), {}, []
    with torch.no_grad():
        for name in (*expert.sparse, *expert.dense):
            parameter = parameters[name]
            kept[name] = parameter.clone()
            delta = expert.sparse[name].dense(parameter.shape[1]) if name in expert.sparse else expert.dense[name]
            parameter.copy_(parameter.float() + delta.to(parameter.device))
    for name, part in expert.low_rank.items():
        like = parameters[name]
        b, a = (x.to(like.device, like.dtype) for x in (part.b.float() * part.scale, part.a))
        product = Product(b, a)
        hooked.append(Hooked(model, parameters[name], product))
    try:
        yield
    finally:
        for layer in hooked:
            layer.restore()
        with torch.no_grad():
            for name, tensor in kept.items():
                parameters[name].copy_(tensor)
