"""How far a model's next-token distributions are from a reference's, along the reference's own replies."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from merge.experts.likelihood import reply_log_probs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_BYTES = 1 << 29
"""Bytes of the reference's log probabilities that are kept at a time, so that only one model must be in memory."""

TAIL = 0.99


@dataclass(frozen=True)
class Divergence:
    """KL(reference ‖ model) of next-token distributions, in nats, over the tokens of the reference's replies.

    llama.cpp calls the two figures "Mean KLD" and "99.0% KLD".

    Attributes:
        mean: over the tokens.
        p99: the 99th percentile.
        tokens: how many.
    """

    mean: float
    p99: float
    tokens: int


@dataclass(frozen=True)
class Reference:
    """What the reference says along its own replies.

    Attributes:
        prompts: token ids of each prompt.
        replies: token ids of its reply, from the first on.
        log_probs: [len(reply), vocabulary] float32 for each.
    """

    prompts: Sequence[Sequence[int]]
    replies: Sequence[Sequence[int]]
    log_probs: Sequence[Tensor]

    def only(self, places: Sequence[int]) -> "Reference":
        """Some of the prompts."""
        prompts, replies, log_probs = self.prompts, self.replies, self.log_probs
        return Reference([prompts[i] for i in places], [replies[i] for i in places], [log_probs[i] for i in places])


def take_reference(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    replies: Sequence[Sequence[int]],
    done: Callable[[], None],
) -> Reference:
    """Run the reference along its replies, whose last ones are cut if they need more than `MOST_BYTES`.

    Args:
        model: the reference.
        prompts: token ids, at least one each.
        replies: token ids, at least one each.
        done: called after each.
    """
    room = max(1, MOST_BYTES // (4 * int(model.config.vocab_size)))
    kept: list[tuple[Sequence[int], Sequence[int], Tensor]] = []
    for prompt, reply in zip(prompts, replies, strict=True):
        if room == 0:
            break
        known = reply[:room]
        kept.append((prompt, known, reply_log_probs(model, prompt, known)))
        room -= len(known)
        done()
    return Reference([item[0] for item in kept], [item[1] for item in kept], [item[2] for item in kept])


def token_divergences(model: "PreTrainedModel", reference: Reference) -> Iterator[Tensor]:
    """KL(reference ‖ model) at each token of each reply: [len(reply)] float32, in nats."""
    for prompt, reply, expected in zip(reference.prompts, reference.replies, reference.log_probs, strict=True):
        found = reply_log_probs(model, prompt, reply)
        yield F.kl_div(found, expected, reduction="none", log_target=True).sum(-1).clamp_min(0.0)


def summarised(divergences: Sequence[Tensor]) -> Divergence:
    """Mean and 99th percentile over all tokens.

    Args:
        divergences: from `token_divergences`, at least one.
    """
    everything = torch.cat(list(divergences))
    return Divergence(float(everything.mean()), float(everything.quantile(TAIL)), len(everything))
