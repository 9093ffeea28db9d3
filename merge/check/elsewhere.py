"""What an expert does to requests that are not its task's: general questions, and prompts of the other tasks.

A request that is routed wrongly, or a chat that goes on about something else, meets backbone + expert. A fine-tune
itself is away from the base there: one that was trained to reply with labels labels everything. So each expert is held
against its own fine-tune, and what is told is how much farther from the base the *expert* is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from merge.bundle import Expert
from merge.check.general import LEAST_KNOWN, general_questions
from merge.checkpoint import Checkpoint
from merge.experts.added import added
from merge.experts.calibration import continue_greedily
from merge.experts.encoding import PromptEncoder
from merge.experts.examples import Example
from merge.experts.likelihood import mean_divergence, reply_log_probs
from merge.experts.running import assign, build_model, end_tokens, load_tokenizer

QUESTIONS = 16
"""General questions that are asked, spread over all."""

PROMPTS = 16
"""Prompts of all tasks together that are asked, as many of each as fit."""

REPLY_TOKENS = 12

FARTHER = 1.5
"""An expert is told of where its KL to the base is above so many times its fine-tune's, and `ALLOWED` more."""

ALLOWED = 0.1
"""Nats a token, the limit for backbones: all that a fine-tune allows which still replies as the base does."""


@dataclass(frozen=True)
class Elsewhere:
    """KL(base ‖ model) a token of the base's greedy replies, in nats, to requests that are not the expert's.

    Attributes:
        general, others: of backbone + expert, on general questions, and on prompts of other tasks (None: there are
            none).
        tuned_general, tuned_others: of the fine-tune.
    """

    general: float
    tuned_general: float
    others: float | None = None
    tuned_others: float | None = None

    def summary(self) -> str:
        """The figures in a line."""
        text = f"KL to the base on general questions {self.general:.3f} (the fine-tune's {self.tuned_general:.3f})"
        if self.others is not None:
            text += f", on prompts of other tasks {self.others:.3f} ({self.tuned_others:.3f})"
        return text

    def concerns(self) -> list[str]:
        """A sentence for each kind of request on which the expert is too far from the base."""
        pairs = (
            ("general questions", self.general, self.tuned_general),
            ("prompts of other tasks", self.others, self.tuned_others),
        )
        return [
            f"{kind}: KL to the base is {found:.3f} nats a token, the fine-tune's is {tuned:.3f}: what is not its "
            "task may be answered with nonsense"
            for kind, found, tuned in pairs
            if found is not None and tuned is not None and found > FARTHER * tuned + ALLOWED
        ]


@dataclass(frozen=True)
class _Asked:
    """Prompts with the base's replies [tokens] and log probabilities [tokens, V]; `owner`: the task, None: general."""

    owner: str | None
    prompt: Sequence[int]
    reply: Sequence[int]
    expected: Tensor


@torch.no_grad()
def measure_elsewhere(
    base: Checkpoint,
    backbone: Checkpoint,
    fine_tunes: Mapping[str, Checkpoint],
    read_expert: Callable[[str], Expert],
    prompts: Mapping[str, Sequence[Sequence[int]]],
) -> Iterator[tuple[str, Elsewhere]]:
    """Measure one expert after another.

    Cost: two passes over some thirty short replies for each expert. Memory: a model in float32, and the log
    probabilities of those replies.

    Args:
        base: θ₀.
        backbone: θ_m.
        fine_tunes: θ_k by name.
        read_expert: E_k of a name.
        prompts: token ids by task; empty: general questions alone are asked.

    Yields:
        Names and figures, in the order of `fine_tunes`. Nothing where the base has no chat template, or answers too few
        of the general questions for there to be knowledge that could be lost.

    Raises:
        CheckpointError: a model cannot be run.
    """
    model = build_model(base.path)
    assign(model, base)
    asked = _ask(base, model, prompts)
    for name, fine_tune in fine_tunes.items() if asked else ():
        expert = read_expert(name)
        assign(model, fine_tune)
        found = tuned = _distances(model, asked, name)
        if expert.metadata.get("form") != "lora":  # an expert of this form is the fine-tune
            assign(model, backbone)
            with added(model, expert):
                found = _distances(model, asked, name)
        assert found[0] is not None
        assert tuned[0] is not None
        yield name, Elsewhere(found[0], tuned[0], found[1], tuned[1])


def _ask(base: Checkpoint, model: PreTrainedModel, prompts: Mapping[str, Sequence[Sequence[int]]]) -> list[_Asked]:
    """Ask the base; nothing comes back where it has no general abilities."""
    tokenizer = load_tokenizer(base.path)
    if not isinstance(tokenizer.chat_template, str):
        return []
    encoder = PromptEncoder(tokenizer, tokenizer.chat_template)
    every = general_questions()
    questions = every[:: max(1, len(every) // QUESTIONS)][:QUESTIONS]
    pairs: list[tuple[str | None, Sequence[int]]] = [(None, encoder.encode(Example(q.prompt))) for q in questions]
    pairs += _spread(prompts)
    tokens = [prompt for _, prompt in pairs]
    replies = continue_greedily(model, tokens, REPLY_TOKENS, end_tokens(model, tokenizer), 8)
    said = [str(tokenizer.decode(reply, skip_special_tokens=True)).lower() for reply in replies]
    known = sum(question.keyword.lower() in reply for question, reply in zip(questions, said, strict=False))
    if known * len(every) < LEAST_KNOWN * len(questions):
        return []
    return [
        _Asked(owner, prompt, reply, reply_log_probs(model, prompt, reply))
        for (owner, prompt), reply in zip(pairs, replies, strict=True)
    ]


def _spread(prompts: Mapping[str, Sequence[Sequence[int]]]) -> list[tuple[str | None, Sequence[int]]]:
    """Up to `PROMPTS` prompts: one of each task, then another one; of many tasks at equal steps."""
    tasks = sorted(prompts)[:: max(1, -(-len(prompts) // PROMPTS))]
    longest = max((len(prompts[task]) for task in tasks), default=0)
    found = [(task, prompts[task][turn]) for turn in range(longest) for task in tasks if turn < len(prompts[task])]
    return list(found[:PROMPTS])


def _distances(model: PreTrainedModel, asked: Sequence[_Asked], task: str) -> tuple[float | None, float | None]:
    """Mean KL to the base on general questions, and on prompts of other tasks than `task`."""
    general = [item for item in asked if item.owner is None]
    others = [item for item in asked if item.owner not in {None, task}]
    return _distance(model, general), _distance(model, others)


def _distance(model: PreTrainedModel, asked: Sequence[_Asked]) -> float | None:
    if not asked:
        return None
    found = [reply_log_probs(model, item.prompt, item.reply) for item in asked]
    return mean_divergence([item.expected for item in asked], found)
