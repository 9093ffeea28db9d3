"""How well a model of the real zoo does its task: greedy replies in its chat template, compared with the answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.zoo.real.packing import encode
from merge.checkpoint import open_checkpoint
from merge.evaluate.metrics import METRICS
from merge.experts.calibration import continue_greedily
from merge.lora import is_adapter, open_adapter
from serve.demo.zoo.real.task import RealTask
from serve.demo.zoo.task import Example


@dataclass(frozen=True)
class Loaded:
    """A model and the tokenizer of the base."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load(base: Path, directory: Path | None = None) -> Loaded:
    """Load the base or a fine-tune of it, with float32 weights.

    Args:
        base: the base's directory.
        directory: of a LoRA, whose factors are added to the base's weights, or of a full fine-tune; None is the base.
    """
    adapted = directory is not None and is_adapter(directory)
    plain = base if directory is None or adapted else directory
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32, local_files_only=True)
    if directory is not None and adapted:
        checkpoint = open_adapter(directory, open_checkpoint(base))
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name in checkpoint.adapter.changes:
                parameters[name].copy_(checkpoint.tensor(name, torch.float32))
    return Loaded(model.requires_grad_(False).train(False), AutoTokenizer.from_pretrained(base, local_files_only=True))


@torch.inference_mode()
def replies(loaded: Loaded, prompts: Sequence[str], longest: int, batch_size: int = 32) -> list[str]:
    """Reply greedily to each prompt, without the end of the turn.

    Args:
        loaded: the model.
        prompts: user messages.
        longest: most tokens of a reply.
        batch_size: prompts run at once.
    """
    tokenizer = loaded.tokenizer
    encoded = [encode(tokenizer, Example(prompt, ""))[0] for prompt in prompts]
    written = continue_greedily(loaded.model, encoded, longest, {tokenizer.eos_token_id}, batch_size)
    return [str(tokenizer.decode(reply, skip_special_tokens=True)).strip() for reply in written]


def marks(loaded: Loaded, task: RealTask, examples: Sequence[Example]) -> list[float]:
    """The task's metric of each greedy reply, 0 to 1."""
    right = METRICS[task.metric]
    answered = replies(loaded, [example.prompt for example in examples], task.longest)
    return [float(right(reply, example.answer)) for reply, example in zip(answered, examples, strict=True)]


def accuracy(loaded: Loaded, task: RealTask, examples: Sequence[Example]) -> float:
    """The mean of the task's metric over greedy replies: the share of right ones if it knows right and wrong alone.

    Raises:
        ValueError: `examples` is empty.
    """
    if not examples:
        raise ValueError("an accuracy needs at least one example")
    found = marks(loaded, task, examples)
    return sum(found) / len(found)
