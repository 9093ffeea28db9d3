"""The log-probabilities that a model gives a reply's tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from merge.experts.running import device_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.inference_mode()
def reply_log_probs(model: "PreTrainedModel", prompt: Sequence[int], reply: Sequence[int]) -> Tensor:
    """Log probabilities [len(reply), vocabulary], float32, with which each token of a reply is predicted.

    Args:
        model: a decoder with its weights assigned.
        prompt: token ids, at least one.
        reply: token ids, at least one.
    """
    logits = model(
        input_ids=torch.tensor([[*prompt, *reply]], device=device_of(model)), logits_to_keep=len(reply) + 1
    ).logits
    return F.log_softmax(logits[0, :-1].float(), -1)


def mean_divergence(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """KL(expected ‖ found) of log probabilities [n, V] each, mean over all n, in nats."""
    sums = [
        float(F.kl_div(other, own, reduction="sum", log_target=True))
        for own, other in zip(expected, found, strict=True)
    ]
    return max(0.0, sum(sums) / sum(len(own) for own in expected))
