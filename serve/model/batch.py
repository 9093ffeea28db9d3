"""One step's tokens."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from kernels.attention import AttentionBatch
from kernels.expert_linear import ExpertBatch


@dataclass(frozen=True)
class ForwardBatch:
    """One step's tokens, those of each sequence one after another.

    Attributes:
        tokens: [T] int64.
        positions: [T] int64, each token's place in its own sequence.
        slot_mapping: [T] int64, row of the flattened KV cache that takes each token's key and value.
        attention: plan of the attention for each sliding window of the model (None: no window).
        experts: slots and gates of the tokens, or None if no token has an expert.
    """

    tokens: Tensor
    positions: Tensor
    slot_mapping: Tensor
    attention: Mapping[int | None, AttentionBatch]
    experts: ExpertBatch | None = None
