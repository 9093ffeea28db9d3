"""Calibrated experts of any network with linear layers: each layer's support and values fitted to its inputs.

The recipes' own calibration runs decoders, layer after layer; this one runs whatever network it is given, once, and
fits each layer for itself: minimise (D − E) H (D − E)ᵀ, D the fine-tune less the backbone, H = Σ x xᵀ over the layer's
inputs in the fine-tune.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Self

import torch
from torch import Tensor, nn

from benchmarks.quality.domain import Weights
from merge.checkpoint import Checkpoint
from merge.experts.activation import greedy_support

ROUNDS = 4
"""Rounds of the greedy choice: a quarter of a row's columns each. One column a round costs four times as long."""


@dataclass(frozen=True)
class Moments:
    """H of each linear weight, [K, K] float32, by the weight's name."""

    gram: dict[str, Tensor]

    @classmethod
    def of(cls, module: nn.Module, wanted: Sequence[str], run: Callable[[], Any]) -> Self:
        """Run a network and sum up what its linear layers read."""
        gram: dict[str, Tensor] = {}
        handles = []
        layers = dict(module.named_modules())

        def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                x = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
                gram[name] = gram.get(name, 0) + x.T @ x

            return hook

        for name in wanted:
            handles.append(layers[name.removesuffix(".weight")].register_forward_pre_hook(watch(name)))
        try:
            with torch.no_grad():
                run()
        finally:
            for handle in handles:
                handle.remove()
        return cls(gram)


def linear_names(module: nn.Module, aside: Sequence[str]) -> list[str]:
    """Names of the weights of a network's linear layers, without those set aside."""
    names = [f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in aside)]


def fit_layers(
    moments: Moments, tuned: Checkpoint, backbone: Weights, density: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Columns [N, k] and values [N, k] of each weight, k = max(1, round(density · K))."""
    index, value = {}, {}
    for name, gram in moments.gram.items():
        difference = tuned.tensor(name, torch.float32) - backbone[name]
        k = max(1, round(density * difference.shape[1]))
        index[name], value[name] = greedy_support(difference @ gram, gram, k, rounds=ROUNDS)
    return index, value
