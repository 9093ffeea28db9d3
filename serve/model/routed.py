"""A routed feed-forward ("mixture of experts", Shazeer et al., 2017): each token takes some of several gated MLPs.

Those MLPs are called branches here, because an expert is what a request asks for: its residuals are called deltas in
this file, and every branch's weights may have some.
"""

import torch
from torch import Tensor

from kernels.expert_linear import ExpertBatch
from kernels.gated import Activation, gated
from serve.model.config import RoutedConfig
from serve.model.layers import Linear, Placement, place_linear


class Router(Linear):
    """Chooses branches. Its weight is never rounded to few bits, which would choose others."""


class RoutedMlp:
    """Branches, and the linear layer that chooses among them.

    The tokens that chose a branch are computed together, one branch after another, each in two products. A step reads
    the choices back to the host, so that it cannot be captured.
    """

    def __init__(
        self, config: RoutedConfig, hidden: int, activation: Activation, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._config, self._hidden, self._activation = config, hidden, activation
        self.router = Router(config.branches, hidden, False, dtype, device)
        self.gate_up = [Linear(2 * config.inner, hidden, False, dtype, device) for _ in range(config.branches)]
        self.down = [Linear(hidden, config.inner, False, dtype, device) for _ in range(config.branches)]

    def __call__(self, x: Tensor, deltas: ExpertBatch | None) -> Tensor:
        """[T, hidden] to the same shape: the chosen branches' results, weighted, summed in float32 and rounded once."""
        chosen, weights = self._route(x, deltas)
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for branch in sorted(set(chosen.flatten().tolist())):
            tokens, rank = (chosen == branch).nonzero(as_tuple=True)
            own = _of_tokens(deltas, tokens)
            made = self.down[branch](gated(self.gate_up[branch](x[tokens], own), self._activation), own)
            out.index_add_(0, tokens, made.to(torch.float32) * weights[tokens, rank, None])
        return out.to(x.dtype)

    def _route(self, x: Tensor, deltas: ExpertBatch | None) -> tuple[Tensor, Tensor]:
        """Numbers of the branches that each token takes, and their weights: [T, chosen] int64 and float32."""
        shares = self.router(x, deltas).to(torch.float32).softmax(-1)
        weights, chosen = shares.topk(self._config.chosen, dim=-1)
        return chosen, weights / weights.sum(-1, keepdim=True) if self._config.renormalised else weights

    def placements(self, prefix: str) -> dict[str, Placement]:
        """Placements of all weights, under their Hugging Face names."""
        config = self._config
        found = place_linear([f"{prefix}.{config.router}"], [config.branches], self.router)
        for branch, (gate_up, down) in enumerate(zip(self.gate_up, self.down, strict=True)):
            names = [f"{prefix}.{name.format(branch)}" for name in config.gate_up]
            found |= place_linear(names, [config.inner] * 2, gate_up)
            found |= place_linear([f"{prefix}.{config.down.format(branch)}"], [self._hidden], down)
        return found


def _of_tokens(deltas: ExpertBatch | None, tokens: Tensor) -> ExpertBatch | None:
    """The plan of some of a step's tokens."""
    if deltas is None or not deltas.has_experts:
        return None
    return ExpertBatch.from_slots(deltas.slots[tokens], deltas.gates[tokens], tokens.device)
