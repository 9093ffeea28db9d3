"""One training run: examples in, the loss on their answers down."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from serve.demo.zoo.task import Example

_IGNORED = -100
_MICRO_BATCHES = 4
_LENGTH_MULTIPLE = 8


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        steps: Optimiser steps.
        batch_size: Examples a step.
        learning_rate: The peak, reached after `warm_up` steps; a cosine leads down to a twentieth of it.
        warm_up: Steps of linear warm-up.
        optimizer: What moves the matrices of the layers; everything else is AdamW's.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warm_up: int
    optimizer: Literal["adamw", "muon"] = "adamw"

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * min(1.0, (step + 1) / self.warm_up) * (0.05 + 0.95 * cosine)


def encode_batch(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode examples, padded on the right to a multiple of eight tokens.

    Attention is causal and the padding comes last, so no mask is needed.

    Returns:
        Token ids [B, T] int64 of `<bos>` + prompt + newline + answer + `<eos>`, and labels [B, T] int64,
        which are -100 on `<bos>`, on the prompt and on the padding.
    """
    prompts = tokenizer([example.prompt for example in examples])["input_ids"]
    replies = tokenizer([f"\n{example.answer}" for example in examples], add_special_tokens=False)["input_ids"]
    longest = max(len(prompt) + len(reply) + 1 for prompt, reply in zip(prompts, replies, strict=True))
    length = math.ceil(longest / _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
    ids = torch.full((len(examples), length), tokenizer.pad_token_id)
    labels = torch.full((len(examples), length), _IGNORED)
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        text = torch.tensor([*prompt, *reply, tokenizer.eos_token_id])
        ids[row, : len(text)] = text
        labels[row, len(prompt) : len(text)] = text[len(prompt) :]
    return ids, labels


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    draw: Callable[[], Example],
    schedule: Schedule,
    on_step: Callable[[int, float], None],
) -> None:
    """Train a model in place: fp32 weights, bf16 autocast.

    A step's examples are sorted by length and run in a few micro-batches, which saves most of the padding;
    the gradient is that of the mean over all answer tokens of the step. Attention is eager: at these
    lengths torch's fused attention costs half as much again a step on a CPU (measured; its backward pass).

    Args:
        model: Trained in place and left in eval mode.
        tokenizer: The model's.
        draw: Draws the next example.
        schedule: How long and how fast.
        on_step: Called after each step with its number, counted from 1, and its loss in nats a token.
    """
    optimizers = _optimizers(model, schedule)
    model.set_attn_implementation("eager")
    model.train()
    for step in range(schedule.steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step)
        examples = [draw() for _ in range(schedule.batch_size)]
        examples.sort(key=lambda example: len(example.prompt) + len(example.answer))
        answer_tokens = sum(len(example.answer) + 2 for example in examples)
        size = math.ceil(schedule.batch_size / _MICRO_BATCHES)
        total = 0.0
        for start in range(0, schedule.batch_size, size):
            ids, labels = encode_batch(tokenizer, examples[start : start + size])
            targets = labels[:, 1:]
            predicting = targets != _IGNORED
            with torch.autocast("cpu", dtype=torch.bfloat16):
                hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
                logits = model.lm_head(hidden[:, :-1][predicting])
            loss = F.cross_entropy(logits.float(), targets[predicting], reduction="sum") / answer_tokens
            torch.autograd.backward(loss)
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        on_step(step + 1, total)
    model.train(False)


def _optimizers(model: LlamaForCausalLM, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Choose who moves which parameter.

    Muon (Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural networks"), with updates as
    large as AdamW's, took the base to a loss of 0.03 in 900 steps; AdamW's was at 0.11 after 1,400 (one run
    each, and not the same mixture of arrangements).
    """
    parameters = dict(model.named_parameters())
    inner = {key for key, p in parameters.items() if p.ndim == 2 and "embed_tokens" not in key}
    muon_keys = inner if schedule.optimizer == "muon" else set()
    rest = [p for key, p in parameters.items() if key not in muon_keys]
    adamw = torch.optim.AdamW(rest, lr=schedule.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    if not muon_keys:
        return [adamw]
    matrices = [p for key, p in parameters.items() if key in muon_keys]
    muon = torch.optim.Muon(matrices, lr=schedule.learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [adamw, muon]
