"""Sequences in a few rows: what all prompts begin with once a row, no padding between them, each blind to the others.

Prompts in a chat template share its system prompt. Run once for several sequences, it takes a part of the time that it
takes in each of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from merge.bundle import SERVED_ARCHITECTURES
from merge.experts.calibration import Batch, make_batches
from merge.experts.running import device_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WORTH_SHARING = 8
"""Tokens that all prompts begin with from which packing pays."""

Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of its reply."""


def packed_batches(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    replies: Sequence[Sequence[int]],
    batch_size: int,
    rows: int = 2,
) -> tuple[Batch, ...]:
    """Join prompts with their continuations and group them by length, packed if that pays and the model allows it.

    A model allows it if it mixes tokens by attention alone, as the served architectures do, attends to whole rows, and
    takes masks of bools.

    Args:
        model: that will run them.
        prompts: token ids, at least one each.
        replies: their continuations.
        batch_size: sequences a batch.
        rows: of a packed batch. The cost of attention grows with the square of a row's length, so one is not best.
    """
    pairs = sorted(zip(prompts, replies, strict=True), key=lambda pair: len(pair[0]) + len(pair[1]))
    chunks = [pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size)]
    window = getattr(model.config, "sliding_window", None)
    longest = max(sum(len(prompt) + len(reply) for prompt, reply in chunk) for chunk in chunks)
    attends_to_all = window is None or longest <= window
    known = (model.config.architectures or [type(model).__name__])[0] in SERVED_ARCHITECTURES
    # Eager attention, which Gemma 2 has for its soft cap, adds a mask to the scores, while sdpa takes one of bools.
    takes_bools = model.config._attn_implementation != "eager"
    if not (known and attends_to_all and takes_bools) or common_beginning(prompts) < WORTH_SHARING:
        return make_batches(prompts, replies, batch_size, device_of(model))
    return tuple(pack(chunk, rows).to(device_of(model)) for chunk in chunks)


def common_beginning(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, of which each keeps at least one for itself."""
    shared = 0
    while all(shared < len(prompt) - 1 and prompt[shared] == prompts[0][shared] for prompt in prompts):
        shared += 1
    return shared


def pack(pairs: Sequence[Pair], rows: int) -> Batch:
    """Pack sequences: each token's logits are those that it has in its sequence alone.

    Args:
        pairs: prompt and reply of each sequence.
        rows: how many rows, at most.
    """
    shared = common_beginning([prompt for prompt, _ in pairs])
    filled = [_row(row, shared) for row in _balanced(pairs, rows)]
    length = max(len(row.ids) for row in filled)
    ids, positions, owner = (torch.zeros(len(filled), length, dtype=torch.int64) for _ in range(3))
    owner.fill_(-1)  # padding sees padding, so that no row of the softmax is empty
    predicts = torch.zeros(len(filled), length, dtype=torch.bool)
    for number, row in enumerate(filled):
        for target, found in ((ids, row.ids), (positions, row.positions), (owner, row.owner)):
            target[number, : len(found)] = torch.tensor(found)
        predicts[number, row.predicting] = True
    seen = (owner[:, None] == 0) & (owner[:, :, None] >= 0) | (owner[:, None] == owner[:, :, None])
    mask = (seen & torch.ones(length, length, dtype=torch.bool).tril())[:, None]
    return Batch(ids, owner >= 0, predicts, positions, mask)


@dataclass
class _Row:
    ids: list[int]
    positions: list[int]
    owner: list[int]  # of each token: 0 the common beginning, else the number of its sequence
    predicting: list[int]


def _row(pairs: Sequence[Pair], shared: int) -> _Row:
    beginning = pairs[0][0][:shared]
    row = _Row(list(beginning), list(range(shared)), [0] * shared, [])
    for number, (prompt, reply) in enumerate(pairs, 1):
        own = [*prompt[shared:], *reply]
        first = len(row.ids) + len(prompt) - shared - 1
        row.predicting.extend(range(first, first + len(reply)))
        row.ids.extend(own)
        row.positions.extend(range(shared, shared + len(own)))
        row.owner.extend([number] * len(own))
    return row


def _balanced(pairs: Sequence[Pair], rows: int) -> list[list[Pair]]:
    """The sequences in rows of about the same length."""
    filled: list[list[Pair]] = [[] for _ in range(min(rows, len(pairs)))]
    lengths = [0] * len(filled)
    for pair in sorted(pairs, key=lambda pair: -len(pair[0]) - len(pair[1])):
        shortest = lengths.index(min(lengths))
        filled[shortest].append(pair)
        lengths[shortest] += len(pair[0]) + len(pair[1])
    return filled
