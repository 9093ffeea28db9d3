"""How far a backbone with an expert is from a fine-tune on the fine-tune's own replies, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.zoo.real.bench import Bench
from benchmarks.zoo.real.packing import encode
from merge.bundle import Expert
from merge.checkpoint import Checkpoint
from merge.experts import build_model
from merge.experts.added import added
from merge.experts.calibration import continue_greedily
from merge.experts.likelihood import reply_log_probs
from merge.experts.running import assign
from serve.demo.zoo.real.tasks import find_task

COMPARED = 32
"""Held-out requests of a task that divergences are measured on, at most: their log probabilities are kept."""


@dataclass(frozen=True)
class Reference:
    """A fine-tune's greedy replies to held-out requests.

    Attributes:
        prompts, replies: token ids.
        expected: of each reply the log probabilities [its tokens, vocabulary], float32.
    """

    prompts: Sequence[Sequence[int]]
    replies: Sequence[Sequence[int]]
    expected: Sequence[Tensor]


@dataclass(frozen=True)
class Divergence:
    """KL(fine-tune ‖ model) of the tokens of the fine-tune's replies, in nats.

    Attributes:
        mean: over all tokens.
        p99: its 99th percentile.
    """

    mean: float
    p99: float


class Fidelity:
    """One model of the base's shape with float32 weights, so that no rounding but the compared one shows."""

    def __init__(self, bench: Bench) -> None:
        """Build the model; the bench chooses the requests."""
        self._bench, self._model = bench, build_model(bench.base.path)

    @torch.inference_mode()
    def reference(self, fine_tune: Checkpoint, task: str) -> Reference:
        """Ask a fine-tune."""
        tokenizer = self._bench.tokenizer
        prompts = [encode(tokenizer, example)[0] for example in self._bench.requests(task)[:COMPARED]]
        assign(self._model, fine_tune)
        replies = continue_greedily(self._model, prompts, find_task(task).longest, {int(tokenizer.eos_token_id)}, 16)
        found = [reply_log_probs(self._model, prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)]
        return Reference(prompts, replies, found)

    @torch.inference_mode()
    def divergence(self, reference: Reference, backbone: Checkpoint, expert: Expert | None = None) -> Divergence:
        """Compare a backbone, with an expert added, with a fine-tune."""
        assign(self._model, backbone)
        tokens = []
        with added(self._model, expert):
            for prompt, reply, expected in zip(reference.prompts, reference.replies, reference.expected, strict=True):
                own = reply_log_probs(self._model, prompt, reply)
                tokens.append(F.kl_div(own, expected, reduction="none", log_target=True).sum(-1))
        every = torch.cat(tokens).clamp_min(0)
        return Divergence(float(every.mean()), float(every.quantile(0.99)))
