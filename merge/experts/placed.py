"""Parts of an expert in a model that holds the backbone, for as long as a block runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:
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


class Fetched:
    """A linear layer that reads its weight for each call; its parameter is on the meta device.

    Attributes:
        entries: values that are added to the weight.
    """

    def __init__(self, layer: nn.Linear, read: Callable[[], Tensor]) -> None:
        """Have a layer read its weight.

        Args:
            layer: its `forward` is replaced until `undo`.
            read: the weight, [N, K].
        """
        self._layer, self._read = layer, read
        self.entries: list[Values] = []
        layer.forward = self  # type: ignore[method-assign, assignment]

    def __call__(self, x: Tensor) -> Tensor:
        """The layer's output for [..., K]."""
        weight = self._read()
        for values in self.entries:
            assert values.index is not None
            weight = weight.float().scatter_add(1, values.index, values.value)
        bias = self._layer.bias
        if not torch.is_autocast_enabled(x.device.type):
            weight = weight.to(x.dtype)
        return functional.linear(x, weight, bias)

    def undo(self) -> None:
        """Give the layer its own `forward` back."""
        del self._layer.forward


class Overlaid:
    """Values added to a weight that its layers fetch, until they are taken out again."""

    def __init__(self, layers: Sequence[Fetched], values: Values) -> None:
        self._layers = layers
        self._values = Values(values.index, values.value.clone())
        self.index = values.index
        for layer in layers:
            layer.entries.append(self._values)

    @property
    def value(self) -> Tensor:
        """What is added."""
        return self._values.value

    def train(self) -> None:
        """From now on a backward pass leaves the gradient of `value`."""
        self._values.value.requires_grad_(True)

    def write(self) -> None:
        """Do nothing: each call reads `value`."""

    def restore(self) -> None:
        """Leave the layers as they were found."""
        self._values.value.requires_grad_(False)
        for layer in self._layers:
            layer.entries[:] = [item for item in layer.entries if item is not self._values]


class Placed:
    """Values added to one parameter of a model, until they are taken out again."""

    def __init__(self, parameter: nn.Parameter, values: Values) -> None:
        self._parameter = parameter
        self._found = parameter.data
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
        self._parameter.data = self._found

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
    embedding has the product added to its parameter, if it does not learn.
    """

    def __init__(self, model: "PreTrainedModel", parameter: nn.Parameter, product: Product) -> None:
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


def _placed(model: "PreTrainedModel", parameter: nn.Parameter, values: Values) -> Placed | Overlaid:
    if not parameter.is_meta:
        return Placed(parameter, values)
    users = [module.forward for module in model.modules() if getattr(module, "weight", None) is parameter]
    return Overlaid([user for user in users if isinstance(user, Fetched)], values)


@contextmanager
def placed(
    model: "PreTrainedModel", values: Mapping[str, Values], products: Mapping[str, Product] = NONE
) -> Iterator[list[Placed | Overlaid]]:
    """Have values and products added to a model's parameters for the length of a block."""
    parameters = dict(model.named_parameters())
    items: list[Placed | Overlaid] = []
    hooked: list[Hooked] = []
    try:
        hooked.extend(Hooked(model, parameters[name], product) for name, product in products.items())
        items.extend(_placed(model, parameters[name], item) for name, item in values.items())
        yield items
    finally:
        for item in items:
            item.restore()
        for layer in hooked:
            layer.restore()
