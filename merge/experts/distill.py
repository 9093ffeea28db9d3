"""Distillation of an expert's numbers: the kept values of a sparse part, the factors of a low-rank one.

Trained so that backbone + expert gives the fine-tune's hidden states on the prompts, and its next-token distribution
along its own continuations.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from merge.experts.calibration import Batch
from merge.experts.layers import decoder_layers
from merge.experts.placed import NONE, Product, Values, placed
from merge.experts.running import products as fast_products
from merge.experts.spilled import Spill
from merge.experts.storage import Storage, as_stored

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ACTIVATIONS = 2 << 30
"""Bytes of activations that a backward pass may keep."""

KEPT = 1 << 30
"""Bytes of what the fine-tune computed that are kept in memory."""

HIDDEN_WEIGHT = 100.0
"""w, the weight of the hidden states' relative error beside the divergence.

Divergence left on held-out prompts, nats a token: on the zoo's dates at 2 % of the entries 0.0033 with w = 0, 0.0012
with 1, 0.0008 with 10; on its hardest task, reverse, at 1 % 0.075 with 10, 0.066 with 100, 0.065 with 1000. Matching
every layer's output did no better than matching the last one's.
"""


@dataclass(frozen=True)
class Settings:
    """How to distil.

    Attributes:
        steps: optimiser steps, one batch each.
        rate: Adam's learning rate of values at the start; it decays linearly to 0.
        factor_rate: that of factors.
        seed: of the batches' order.
        storage: of the values, which are rounded to it at the end.
    """

    steps: int
    rate: float = 1e-2
    factor_rate: float = 3e-4
    seed: int = 0
    storage: Storage = "bf16"


@dataclass(frozen=True)
class Target:
    """What the fine-tune computes on one batch.

    Attributes:
        log_probs: [M, V], its next-token distributions at the M predicting positions.
        hidden: [R, D] float32, what its output head reads at all R real positions.
    """

    log_probs: Tensor
    hidden: Tensor


@torch.no_grad()
def targets(model: "PreTrainedModel", batches: Sequence[Batch], folder: Path | None = None) -> list[Target]:
    """Run the fine-tune once over the batches.

    Log-probabilities are kept in bfloat16 once they would take more than a gigabyte in float32 (M V over all batches).
    Of all tensors no more than `KEPT` bytes are in memory, and the others in files. They can take part in a later
    backward pass.

    Args:
        model: the fine-tune.
        batches: the task's prompts with its continuations.
        folder: for what is not kept in memory; None: the system's.
    """
    spill = Spill(KEPT, folder)
    positions = sum(int(batch.predicts.sum()) for batch in batches)
    large = 4 * positions * int(model.config.vocab_size) > 1 << 30
    found = []
    for batch in batches:
        hidden, logits = forward(model, batch)
        log_probs = functional.log_softmax(logits, -1)
        stored = log_probs.to(torch.bfloat16) if large else log_probs
        found.append(Target(spill.keep(stored), spill.keep(hidden)))
    return found


def forward(model: "PreTrainedModel", batch: Batch) -> tuple[Tensor, Tensor]:
    """Run a batch.

    Returns:
        [R, D] float32, the decoder's output at the real positions, and [M, V] float32, the logits at the predicting
        ones (only those go through the output head).
    """
    with fast_products(model):
        hidden: Tensor = model.base_model(**batch.arguments).last_hidden_state
        head: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        logits: Tensor = head(hidden[batch.predicts])
    return hidden[batch.real].float(), logits.float()


def distill(
    model: "PreTrainedModel",
    values: Mapping[str, Values],
    batches: Sequence[Batch],
    teacher: Sequence[Target],
    settings: Settings,
    products: Mapping[str, Product] = NONE,
) -> None:
    """Train an expert's numbers in place.

    Semantics: minimise KL(p_fine-tune ‖ p_backbone+expert) + w |h − h_fine-tune|² / |h_fine-tune|² by Adam; the first
    term is the mean over a batch's predicting positions, the second over all its real ones, h what the output head
    reads.

    If a model is sure of the next token, its distribution has little information; h has D numbers, in the prompt too.

    A weight's gradient is computed dense, read at the support and dropped at once, so that at most one dense gradient
    exists at a time beside the activations. Where the activations of all layers would take more than `ACTIVATIONS`
    bytes, those between the layers are kept, and a layer's own are computed again in the backward pass.

    Args:
        model: holds the backbone's weights; they are the same afterwards.
        values: by parameter name; `value` is updated, rounded to what is stored if there is an index.
        batches: the task's prompts with the fine-tune's continuations.
        teacher: the fine-tune's `targets` on the same batches.
        settings: steps and so on.
        products: by parameter name; their factors are updated, and not rounded.
    """
    with placed(model, values, products) as items, _recomputed(model, batches):
        for item in items:
            item.train()
        factors = [factor.requires_grad_(True) for product in products.values() for factor in (product.b, product.a)]
        groups = [([item.value for item in items], settings.rate), (factors, settings.factor_rate)]
        if not any(params for params, _ in groups):
            return  # the backbone is the fine-tune
        optimizer = torch.optim.Adam(
            [{"params": params, "lr": rate, "initial": rate} for params, rate in groups if params],
            betas=(0.9, 0.99),
            foreach=True,
        )
        for step, i in enumerate(_order(len(batches), settings)):
            hidden, logits = forward(model, batches[i])
            expected, states = teacher[i].log_probs.to(logits.device).float(), teacher[i].hidden.to(hidden.device)
            found = functional.log_softmax(logits, -1)
            loss = functional.kl_div(found, expected, reduction="batchmean", log_target=True)
            loss += HIDDEN_WEIGHT * functional.mse_loss(hidden, states) / states.square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            for group in optimizer.param_groups:
                group["lr"] = group["initial"] * (1 - step / settings.steps)
            optimizer.step()
            optimizer.zero_grad()
            for item in items:
                item.write()
    for factor in factors:
        factor.requires_grad_(False)
    for name, item in zip(values, items, strict=True):
        values[name].value = item.value if item.index is None else as_stored(item.value, settings.storage)


@contextmanager
def _recomputed(model: "PreTrainedModel", batches: Sequence[Batch]) -> Iterator[None]:
    """Compute the layers' activations again in backward passes if all of them would take much memory."""
    layers = decoder_layers(model)
    tokens = max((batch.ids.numel() for batch in batches), default=0)
    if activation_bytes(model.config, tokens) * len(layers) <= ACTIVATIONS:
        yield
        return
    # Of each layer itself, not of its class.
    forwards = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        yield
    finally:
        for layer, forward in zip(layers, forwards, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def distillation_bytes(config: "PretrainedConfig", layers: int, batches: Sequence[Batch], numbers: int) -> int:
    """About what `distill` takes besides the model and what the fine-tune computed; bytes.

    That is what the backward pass of the largest batch keeps, its logits with what is computed of them, and of each
    number that is trained its gradient and Adam's two moments.

    Args:
        config: the model's.
        layers: of the decoder.
        batches: the task's prompts with the fine-tune's continuations.
        numbers: that are trained.
    """
    tokens = max((batch.ids.numel() for batch in batches), default=0)
    positions = max((int(batch.predicts.sum()) for batch in batches), default=0)
    whole = layers * activation_bytes(config, tokens)
    between = 4 * tokens * int(config.hidden_size) * layers + activation_bytes(config, tokens)
    activations = whole if whole <= ACTIVATIONS else between
    return activations + 4 * 4 * positions * int(config.vocab_size) + 4 * 4 * numbers


def activation_bytes(config: "PretrainedConfig", tokens: int) -> int:
    """About what a backward pass keeps of one decoder layer: ten vectors of its width, and four within the MLP."""
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return 4 * tokens * (10 * int(config.hidden_size) + 4 * int(inner))


@torch.inference_mode()
def divergence(
    model: "PreTrainedModel",
    values: Mapping[str, Values],
    batches: Sequence[Batch],
    teacher: Sequence[Target],
    products: Mapping[str, Product] = NONE,
) -> float:
    """Mean KL(p_fine-tune ‖ p_backbone+expert) in nats a predicted token, with the present values.

    The model holds the backbone's weights; they are the same afterwards.
    """
    total, count = 0.0, 0
    with placed(model, values, products):
        for batch, expected in zip(batches, teacher, strict=True):
            log_probs = functional.log_softmax(forward(model, batch)[1], -1)
            wanted = expected.log_probs.to(log_probs.device).float()
            total += float(functional.kl_div(log_probs, wanted, reduction="sum", log_target=True))
            count += wanted.shape[0]
    return total / max(count, 1)


def _order(batches: int, settings: Settings) -> Iterator[int]:
    """Batch numbers: each batch once in random order, then again."""
    rng = random.Random(settings.seed)
    queue: list[int] = []
    for _ in range(settings.steps):
        if not queue:
            queue = list(range(batches))
            rng.shuffle(queue)
        yield queue.pop()
