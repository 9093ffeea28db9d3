"""Parts of an expert in a model that holds the backbone, for as long as a block runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel


@dataclass
class Values:
    """The trainable part of one parameter.

    Attributes:
        index: [N, k] int64 columns of a 2-D weight, or None for a parameter that is trained whole.
        value: [N, k] float32 (or the parameter's shape), what is added to the backbone there.
    """

    index: Tensor | None
    value: Tensor


@dataclass
class Product:
    """The low-rank part of one parameter: b @ a is added to it.

    Attributes:
        b: [N, r] float32.
        a: [r, K] float32.
    """

    b: Tensor
    a: Tensor


NONE: Mapping[str, Product] = MappingProxyType({})


class Placed:
    """Values added to one parameter of a model, until they are taken out again."""

    def __init__(self, parameter: nn.Parameter, values: Values) -> None:
        self._parameter = parameter
        self._dtype = parameter.dtype
        parameter.data = parameter.data.float()  # sums with small values would be lost in bfloat16
        self.index = values.index
        self._backbone = self._gather(parameter.detach()).clone()
        self.value = values.value.clone()
        self._hook: RemovableHandle | None = None
        self.write()

    def train(self) -> None:
        """From now on a backward pass leaves the gradient of `value`, and no dense one."""
        self._parameter.requires_grad_(True)
        self._hook = self._parameter.register_post_accumulate_grad_hook(self._take_gradient)  # type: ignore[no-untyped-call]

    def write(self) -> None:
        """Bring the parameter up to date with `value`."""
        self._set(self._backbone + self.value)

    def restore(self) -> None:
        """Leave the parameter as it was found."""
        if self._hook is not None:
            self._hook.remove()
        self._parameter.requires_grad_(False)
        self._parameter.grad = None
        self._set(self._backbone)
        self._parameter.data = self._parameter.data.to(self._dtype)

    def _gather(self, dense: Tensor) -> Tensor:
        return dense if self.index is None else dense.gather(1, self.index)

    def _take_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.value.grad = self._gather(parameter.grad)
            parameter.grad = None

    @torch.no_grad()
    def _set(self, numbers: Tensor) -> None:
        if self.index is None:
            self._parameter.copy_(numbers)
        else:
            self._parameter.scatter_(1, self.index, numbers)


class Hooked:
    """A product added to what the layers of one parameter compute, as the server does it: the parameter stays.

    So the product's factors get gradients, and the parameter needs none. A layer that is neither linear nor an
    embedding has the product added to its parameter, where it does not learn.
    """

    def __init__(self, model: PreTrainedModel, parameter: nn.Parameter, product: Product) -> None:
        self._parameter = parameter
        layers = [layer for layer in model.modules() if getattr(layer, "weight", None) is parameter]
        self._handles: list[RemovableHandle] = []
        self._original: Tensor | None = None
        if all(isinstance(layer, nn.Linear | nn.Embedding) for layer in layers):
            self._handles = [layer.register_forward_hook(_adds(product)) for layer in layers]
        else:
            self._original = parameter.detach().clone()
            with torch.no_grad():
                parameter.addmm_(product.b, product.a)

    @torch.no_grad()
    def restore(self) -> None:
        """Leave the model as it was found."""
        for handle in self._handles:
            handle.remove()
        if self._original is not None:
            self._parameter.copy_(self._original)


def _adds(product: Product) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        x: Tensor = inputs[0]
        if isinstance(layer, nn.Embedding):
            return output + functional.embedding(x, product.b) @ product.a
        return output + (x @ product.a.T) @ product.b.T

    return hook


@contextmanager
def placed(
    model: PreTrainedModel, values: Mapping[str, Values], products: Mapping[str, Product] = NONE
) -> Iterator[list[Placed]]:
    """Have values and products added to a model's parameters for the length of a block."""
    parameters = dict(model.named_parameters())
    items: list[Placed] = []
    hooked: list[Hooked] = []
    try:
        hooked.extend(Hooked(model, parameters[name], product) for name, product in products.items())
        items.extend(Placed(parameters[name], item) for name, item in values.items())
        yield items
    finally:
        for item in items:
            item.restore()
        for layer in hooked:
            layer.restore()
