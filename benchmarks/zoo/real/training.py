"""One fine-tune of the real base, LoRA or full: examples in, the loss on their answers down."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.zoo.real.packing import training_batch
from merge.bundle.files import new_directory, replaced
from serve.demo.zoo.real.base import NAME
from serve.demo.zoo.real.task import RealTask
from serve.demo.zoo.task import Example

Form = Literal["lora", "full"]

RANK = 8
"""Rank of the adapters: eight of them in bfloat16 are 39 MB."""

ALPHA = 16
WARM_UP = 10
_STEPS_BETWEEN_SAVES = 25


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        steps: optimizer steps.
        batch_size: examples a step.
        learning_rate: the peak, reached after `WARM_UP` steps; from there it falls in a straight line to 0.
    """

    steps: int
    batch_size: int
    learning_rate: float

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.learning_rate * min(1.0, (step + 1) / WARM_UP) * (1 - step / self.steps)

    def batch(self, task: RealTask, seed: int, step: int) -> list[Example]:
        """The examples of a step: all contents in turn, in another order and in other wordings in each round."""
        size = len(task.contents("train"))
        wanted = range(step * self.batch_size, (step + 1) * self.batch_size)
        rounds = {place // size: task.examples("train", seed=seed + place // size) for place in wanted}
        return [rounds[place // size][place % size] for place in wanted]


def fine_tune(
    base: Path,
    task: RealTask,
    form: Form,
    schedule: Schedule,
    seed: int,
    out: Path,
    on_step: Callable[[int, float], None],
) -> None:
    """Fine-tune the base for one task and store the result, or do nothing if it is stored already.

    A LoRA covers all linear layers of the decoder. A full fine-tune trains everything but the embeddings, which are the
    output head too. The loss is on the answers alone, in the model's chat template. A state beside `out` is
    kept every few steps and removed at the end: an interrupted run continues where it stopped, with the same result.

    Args:
        base: the base's directory.
        task: what to learn.
        form: LoRA, stored as a PEFT directory in bfloat16, or full, stored as a Hugging Face directory in bfloat16.
        schedule: how long and how fast.
        seed: of the initial factors and of the examples.
        out: the directory to make.
        on_step: called with each step's number, counted from 1, and its loss.

    Raises:
        ImportError: peft, which LoRAs are trained with, is not installed.
    """
    if out.is_dir() and any(out.iterdir()):
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model, decoder = _trainable(base, form, seed)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
    state = out.with_name(f".{out.name}.state")
    first = _resume(state, parameters, optimizer)
    for step in range(first, schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        loss = _loss(decoder, tokenizer, schedule.batch(task, seed, step))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        on_step(step + 1, float(loss.detach()))
        if (step + 1) % _STEPS_BETWEEN_SAVES == 0 and step + 1 < schedule.steps:
            with replaced(state) as partial:
                kept = {"step": step + 1, "parameters": parameters, "optimizer": optimizer.state_dict()}
                torch.save(kept, partial)
    with new_directory(out) as partial:
        model.to(torch.bfloat16)
        if form == "full":
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        else:  # PEFT would ask the Hub whether the base's embeddings have changed
            model.save_pretrained(partial, save_embedding_layers=False)
        (partial / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    state.unlink(missing_ok=True)


def _trainable(base: Path, form: Form, seed: int) -> tuple[Any, PreTrainedModel]:
    """The model to save, and the decoder inside it that is run."""
    torch.manual_seed(seed)
    if form == "full":
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model.get_input_embeddings().requires_grad_(False)
        return model, model
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("training LoRAs needs peft: pip install 'overtone[dev]'") from error
    decoder = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    decoder.name_or_path = NAME  # what adapter_config.json names; the cache's path means nothing elsewhere
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT reads an attribute that transformers has renamed
        return get_peft_model(decoder, config), decoder


def _loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> Tensor:
    """Mean cross-entropy of the answers' tokens, in nats; the output head is run at their places alone."""
    batch = training_batch(tokenizer, examples)
    with torch.autocast("cpu", torch.bfloat16):
        decoder = model.get_decoder()  # type: ignore[no-untyped-call]
        hidden = decoder(**batch.arguments).last_hidden_state
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        logits = head(hidden[batch.predicts])
    return F.cross_entropy(logits.float(), batch.ids.roll(-1, 1)[batch.predicts])


def _resume(state: Path, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> int:
    if not state.is_file():
        return 0
    kept = torch.load(state, weights_only=True)
    with torch.no_grad():
        for parameter, stored in zip(parameters, kept["parameters"], strict=True):
            parameter.copy_(stored)
    optimizer.load_state_dict(kept["optimizer"])
    return int(kept["step"])
