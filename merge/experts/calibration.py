"""Calibration sequences: prompts of a task, each continued by the fine-tune itself, in padded batches.

The fine-tune's own greedy continuation is used even if reference answers exist: it needs no labels, it carries the
separators and end tokens that the fine-tune has learned, and it is what backbone + expert shall reproduce.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from merge.experts.running import cache_keyword, device_of, products

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Batch:
    """Token sequences of similar length, padded on the right, or packed (`pack`).

    In a causal model no token sees what stands to its right, so a batch of one sequence a row needs no attention mask;
    the results at padding are never used.

    Attributes:
        ids: [B, T] int64.
        real: [B, T] bool, False at padding.
        predicts: [B, T] bool, positions whose next token belongs to the continuation.
        positions: [B, T] int64 of a packed batch, each token's place in its sequence; None: one sequence a row.
        mask: [B, 1, T, T] bool of a packed batch, True where a token (row) sees another (column).
    """

    ids: Tensor
    real: Tensor
    predicts: Tensor
    positions: Tensor | None = None
    mask: Tensor | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """What a model is called with to run the batch."""
        called: dict[str, Any] = {"input_ids": self.ids, "use_cache": False}
        if self.mask is not None:
            called |= {"attention_mask": self.mask, "position_ids": self.positions}
        return called

    def to(self, device: torch.device | None) -> "Batch":
        """The same batch on a device; None: on its present device."""
        if device is None:
            return self
        always = (item.to(device) for item in (self.ids, self.real, self.predicts))
        packed = (None if item is None else item.to(device) for item in (self.positions, self.mask))
        return Batch(*always, *packed)


class Watched(Sequence[Batch]):
    """Batches that call a function each time one of them is taken, which is about once for each run of a model."""

    def __init__(self, batches: Sequence[Batch], taken: Callable[[], None]) -> None:
        self._batches, self._taken = batches, taken

    def __len__(self) -> int:
        return len(self._batches)

    @overload
    def __getitem__(self, place: int) -> Batch: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Batch]: ...
    def __getitem__(self, place: int | slice) -> Batch | Sequence[Batch]:
        found = self._batches[place]  # an IndexError ends an iteration
        self._taken()
        return found


@torch.inference_mode()
def continue_greedily(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], limit: int, ends: Collection[int], batch_size: int = 64
) -> list[list[int]]:
    """Continue each prompt by the model's most likely token, again and again.

    Args:
        model: a decoder with its weights assigned.
        prompts: token ids, at least one each.
        limit: most tokens added.
        ends: token ids that end a continuation (and are part of it).
        batch_size: sequences run at once.

    Returns:
        One continuation a prompt, in their order.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    replies: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        for i, reply in zip(chosen, _continue(model, [prompts[i] for i in chosen], limit, ends), strict=True):
            replies[i] = reply
    return replies


def _continue(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], limit: int, ends: Collection[int]
) -> list[list[int]]:
    from transformers import DynamicCache  # as in `build_model`

    longest = max(len(prompt) for prompt in prompts)
    # Padding on the left lets all rows end at the same column, where the next token goes.
    device = device_of(model)
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    real = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    position = (real.cumsum(1) - 1).clamp_min(0)
    keyword, cache = cache_keyword(model), DynamicCache()
    replies: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # the prompt of each row that still runs
    for _ in range(limit):
        with products(model):
            output = model(
                input_ids=ids, attention_mask=real, position_ids=position, use_cache=True, logits_to_keep=1,
                **{keyword: cache},
            )  # fmt: skip
        ids = output.logits[:, -1].argmax(-1, keepdim=True)
        for row, token in zip(rows, ids[:, 0].tolist(), strict=True):
            replies[row].append(token)
        real = torch.cat([real, torch.ones_like(ids)], 1)
        position = position[:, -1:] + 1
        kept = [place for place, row in enumerate(rows) if replies[row][-1] not in ends]
        if not kept:
            break
        if len(kept) < len(rows):
            chosen = torch.tensor(kept, device=device)
            cache.batch_select_indices(chosen)
            rows = [rows[place] for place in kept]
            ids, real, position = ids[chosen], real[chosen], position[chosen]
    return replies


def make_batches(
    prompts: Sequence[Sequence[int]],
    replies: Sequence[Sequence[int]],
    batch_size: int,
    device: torch.device | None = None,
) -> tuple[Batch, ...]:
    """Join prompts with their continuations and group them by length.

    Args:
        prompts: token ids, at least one each.
        replies: their continuations.
        batch_size: sequences a batch.
        device: of the model that will run them; None: the processor.
    """
    pairs = sorted(zip(prompts, replies, strict=True), key=lambda pair: len(pair[0]) + len(pair[1]))
    return tuple(_batch(pairs[start : start + batch_size]).to(device) for start in range(0, len(pairs), batch_size))


def _batch(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Batch:
    width = max(len(prompt) + len(reply) for prompt, reply in pairs)
    ids = torch.zeros(len(pairs), width, dtype=torch.int64)
    real = torch.zeros(len(pairs), width, dtype=torch.bool)
    predicts = torch.zeros(len(pairs), width, dtype=torch.bool)
    for row, (prompt, reply) in enumerate(pairs):
        length = len(prompt) + len(reply)
        ids[row, :length] = torch.tensor([*prompt, *reply])
        real[row, :length] = True
        predicts[row, len(prompt) - 1 : length - 1] = True
    return Batch(ids, real, predicts)
