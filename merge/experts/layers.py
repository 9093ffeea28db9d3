"""A decoder run one layer at a time, with the hidden states of all batches kept between the layers.

Code that needs the inputs of every layer in turn, while the layers before it change, takes a few runs of each layer
so, instead of a run of the whole model up to it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from merge.experts.calibration import Batch
from merge.experts.inputs import layer_inputs, linear_weights, recorded
from merge.experts.running import device_of, products
from merge.experts.spilled import Spill

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HIDDEN = 1 << 29
"""Bytes of hidden states that a run keeps in memory."""


@dataclass(frozen=True)
class _Call:
    """What a model calls one of its layers with, besides the hidden states."""

    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]


class LayerRun:
    """A model's decoder layers, and the hidden states that the next one reads.

    Memory: [B, T, D] of each batch, in the dtype of the model's hidden states; beyond `HIDDEN` bytes in files.
    """

    def __init__(self, model: "PreTrainedModel", batches: Sequence[Batch], folder: Path | None = None) -> None:
        """Begin every batch, to learn what each layer is called with.

        Args:
            model: the decoder, with its weights assigned.
            batches: the sequences.
            folder: for hidden states that are not kept in memory; None: the system's.
        """
        self._model, self._batches, spill = model, batches, Spill(HIDDEN, folder)
        self._linear = linear_weights(model)
        self._layers = decoder_layers(model)
        owner = {id(module): number for number, layer in enumerate(self._layers) for module in layer.modules()}
        self._owner = {name: owner.get(id(module)) for name, module in self._linear.items()}
        self._hidden: list[Tensor] = []
        self._calls: list[list[_Call]] = []
        self._next = 0
        for batch in batches if self._layers else ():
            hidden, calls = self._learn(batch)
            self._hidden.append(spill.keep(hidden))
            self._calls.append(calls)

    def layer_of(self, name: str) -> int | None:
        """The number of the decoder layer that a linear weight belongs to; None for others, such as an output head."""
        return self._owner[name]

    def inputs(self, batch: int, names: Sequence[str]) -> dict[str, Tensor]:
        """What linear layers read. Layers before theirs are run with their present weights, unless they were before.

        Args:
            batch: the batch's number.
            names: weights of linear layers of one decoder layer, or of none. Of a decoder layer that was passed, and of
                none, the whole model is run up to them.

        Returns:
            For each name [R, K] float32, at the batch's R real positions.
        """
        layer = self._owner[names[0]]
        if layer is None or layer < self._next:
            return layer_inputs(self._model, self._batches[batch], names)
        self._move_to(layer)
        wanted = {name: self._linear[name] for name in names}
        return recorded(wanted, self._batches[batch], lambda: self._run(layer, batch, self._hidden[batch]))

    def _move_to(self, layer: int) -> None:
        while self._next < layer:
            for batch, hidden in enumerate(self._hidden):
                with torch.inference_mode():
                    hidden.copy_(self._run(self._next, batch, hidden))
            self._next += 1

    @torch.inference_mode()
    def _run(self, layer: int, batch: int, hidden: Tensor) -> Tensor:
        call = self._calls[batch][layer]
        with products(self._model):
            output = self._layers[layer](hidden.to(device_of(self._model)), *call.arguments, **call.keywords)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    @torch.inference_mode()
    def _learn(self, batch: Batch) -> tuple[Tensor, list[_Call]]:
        """The first layer's hidden states, and each layer's call. No layer runs: each passes on what it is given."""
        hidden: list[Tensor] = []
        calls: list[_Call] = []

        def pass_on(states: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
            hidden.append(states)
            calls.append(_Call(arguments, keywords))
            return states

        # Of each layer itself, not of its class.
        forwards = [layer.__dict__.get("forward") for layer in self._layers]
        try:
            for layer in self._layers:
                layer.forward = pass_on
            with products(self._model):
                self._model.base_model(**batch.arguments)
        finally:
            for layer, forward in zip(self._layers, forwards, strict=True):
                if forward is None:
                    del layer.forward
                else:
                    layer.forward = forward
        return hidden[0], calls


def decoder_layers(model: "PreTrainedModel") -> list[nn.Module]:
    """The layers that the model runs one after the other; none if it does not name them as decoders do."""
    layers = getattr(model.base_model, "layers", None)
    return list(layers) if isinstance(layers, nn.ModuleList) else []
