"""The loss of a causal language model on replies to prompts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from merge.bundle import own_settings
from merge.checkpoint import Checkpoint
from merge.experts.calibration import Batch, continue_greedily, make_batches
from merge.experts.config import CalibrationConfig
from merge.experts.encoding import own_encoders, prompt_encoder
from merge.experts.examples import CalibrationError
from merge.experts.running import assign, build_model, end_tokens
from merge.frank_wolfe.config import ObjectiveConfig
from merge.frank_wolfe.examples import read_target_examples

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FLOOR = 0.01
"""Nats a token below which a task counts as learned: what is added to a loss before its logarithm is taken."""


class LanguageModelLoss:
    """Cross-entropy of replies, in nats: the mean over a task's reply tokens, then over the tasks.

    Semantics: l = mean_k l_k, l_k = −mean log p(token | prompt, reply so far); logarithmic: l = mean_k log(l_k + FLOOR)

    Memory: the parameters, their gradients, and one minibatch's activations; logits are computed only at positions
    that predict a reply token. The model uses the parameters under test themselves, without a copy.
    """

    def __init__(
        self, model: "PreTrainedModel", batches: Mapping[str, Sequence[Batch]], logarithmic: bool = False
    ) -> None:
        """Take a float32 model, which keeps its own values of whatever it is not lent, and minibatches by task."""
        self._model = model
        self._batches = {task: tuple(batches[task]) for task in sorted(batches)}
        self._logarithmic = logarithmic

    @property
    def tasks(self) -> tuple[str, ...]:
        """The target tasks' names, sorted."""
        return tuple(self._batches)

    def loss(self, parameters: Mapping[str, Tensor]) -> float:
        """The mean of the tasks' losses (or of their logarithms)."""
        losses = self.task_losses(parameters).values()
        return sum(self._scaled(loss) for loss in losses) / len(losses)

    def task_losses(self, parameters: Mapping[str, Tensor]) -> dict[str, float]:
        """Each task's l_k."""
        with self._lent(parameters):
            return {task: self._forward(task) for task in self.tasks}

    def loss_and_gradient(
        self, parameters: Mapping[str, Tensor], task: str | None = None
    ) -> tuple[float, Mapping[str, Tensor]]:
        """One task's loss (None: the mean of all) and its gradient.

        Args:
            parameters: float32, by the model's names; they are not modified.
            task: one of `tasks`.

        Raises:
            ValueError: a name is not a parameter of the model, or a tensor has another shape or dtype.
        """
        tasks = self.tasks if task is None else (task,)
        total = 0.0
        with self._lent(parameters) as lent:
            for chosen in tasks:
                # The slope of the logarithm has to be known before the first minibatch goes back.
                slope = 1 / (self._forward(chosen) + FLOOR) if self._logarithmic else 1.0
                loss = 0.0
                with torch.enable_grad():
                    for part in self._parts(chosen):
                        (part * (slope / len(tasks))).backward()  # type: ignore[no-untyped-call]
                        loss += float(part.detach())
                total += self._scaled(loss) / len(tasks)
            gradient = {
                name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                for name, parameter in lent.items()
            }
        return total, gradient

    def _scaled(self, loss: float) -> float:
        return math.log(loss + FLOOR) if self._logarithmic else loss

    @torch.no_grad()
    def _forward(self, task: str) -> float:
        return sum(float(part) for part in self._parts(task))

    def _parts(self, task: str) -> Iterator[Tensor]:
        """Each minibatch's share of a task's loss; they sum to it."""
        batches = self._batches[task]
        tokens = sum(int(batch.predicts.sum()) for batch in batches)
        for batch in batches:
            wanted = batch.ids.roll(-1, 1)[batch.predicts]
            yield functional.cross_entropy(self._logits(batch), wanted, reduction="sum") / tokens

    def _logits(self, batch: Batch) -> Tensor:
        """Logits at the predicting positions, [M, V]; padding is on the right, where no real token attends."""
        hidden = self._model.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state
        head: nn.Module = self._model.get_output_embeddings()  # type: ignore[no-untyped-call]
        logits: Tensor = head(hidden[batch.predicts])
        return logits

    @contextmanager
    def _lent(self, parameters: Mapping[str, Tensor]) -> Iterator[dict[str, nn.Parameter]]:
        """Let the model's parameters be the given tensors, and need gradients, for the time of the block."""
        own = dict(self._model.named_parameters())
        for name, tensor in parameters.items():
            if name not in own:
                raise ValueError(f"{name} is not a parameter of the model: exclude it from the merge")
            if tensor.shape != own[name].shape or tensor.dtype != own[name].dtype:
                raise ValueError(
                    f"{name} is {tensor.dtype} {list(tensor.shape)}; the model has {own[name].dtype} "
                    f"{list(own[name].shape)}"
                )
        lent = {name: own[name] for name in parameters}
        kept = {name: parameter.data for name, parameter in lent.items()}
        try:
            for name, parameter in lent.items():
                parameter.data = parameters[name]
                parameter.requires_grad_(True)
            yield lent
        finally:
            for name, parameter in lent.items():
                parameter.data = kept[name]
                parameter.requires_grad_(False)
                parameter.grad = None


def language_model_loss(
    base: Checkpoint, fine_tunes: Mapping[str, Checkpoint], calibration: CalibrationConfig, config: ObjectiveConfig
) -> LanguageModelLoss:
    """Build the loss from a recipe's calibration file.

    Args:
        base: gives the architecture, the tokenizer and the values of what is not merged.
        fine_tunes: by name; run if `config.replies` is `fine_tune`.
        calibration: the file of the examples and its settings.
        config: which of them, and what the replies are.

    Raises:
        CalibrationError: the file is missing or malformed, or lacks a target task or its answers.
        CheckpointError: a checkpoint cannot be run.
    """
    answered = config.replies == "answer"
    examples = read_target_examples(calibration.file, config.tasks, answered)
    usual = prompt_encoder(base, calibration)
    own = {task: own_settings(base.path, *fine_tune.directories) for task, fine_tune in fine_tunes.items()}
    encoders = own_encoders(usual, own, calibration)
    tokenizer, model = usual.tokenizer, build_model(base.path, device=base.device)
    batches = {}
    for task, found in examples.items():
        encoder = encoders.get(task, usual)
        # After a template's generation prompt the reply begins at once.
        separator = config.separator if encoder.template is None or "separator" in config.model_fields_set else ""
        chosen = found[: config.per_task]
        prompts = [encoder.encode(example) for example in chosen]
        if answered:
            texts = [f"{separator}{example.answer}" for example in chosen]
            end = [tokenizer.eos_token_id] if isinstance(tokenizer.eos_token_id, int) else []
            replies = [ids + end for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        elif task in fine_tunes:
            assign(model, fine_tunes[task])
            ends = own[task].end_tokens or end_tokens(model, tokenizer)
            replies = continue_greedily(model, prompts, config.answer_tokens, ends)
        else:
            raise CalibrationError(f"the target task {task!r} has no fine-tune to reply: use replies: answer")
        batches[task] = make_batches(prompts, replies, config.batch_size, base.device)
    assign(model, base)
    return LanguageModelLoss(model, batches, config.scale == "log")
