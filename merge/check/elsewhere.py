"""What an expert does to requests that are not its task's: general questions, and prompts of the other tasks.

A request that is routed wrongly, or a chat that changes its subject, is answered by backbone + expert. A fine-tune
itself is away from the base there: one that was trained to reply with labels labels everything. So each expert is held
with its own fine-tune, and the report says how much farther from the base the *expert* is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor

from merge.bundle import Expert
from merge.check.general import (
    LEAST_KNOWN,
    GeneralReference,
    chat_encoder,
    decoded,
    general_questions,
    right_answers,
)
from merge.checkpoint import Checkpoint
from merge.experts.added import added
from merge.experts.calibration import continue_greedily
from merge.experts.examples import Example
from merge.experts.likelihood import mean_divergence, reply_log_probs
from merge.experts.running import assign, build_model, end_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")

QUESTIONS = 16
"""General questions that are asked, spread over all."""

PROMPTS = 16
"""Prompts of all tasks together that are asked, as many of each as fit."""

REPLY_TOKENS = 12
_BATCH = 8

FARTHER = 1.5
"""A warning is given if an expert's KL to the base is above this multiple of its fine-tune's plus `ALLOWED`."""

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
            f"{kind}: KL to the base is {found:.3f} nats a token, the fine-tune's is {tuned:.3f}: prompts "
            "outside its task may get wrong answers"
            for kind, found, tuned in pairs
            if found is not None and tuned is not None and found > FARTHER * tuned + ALLOWED
        ]


@dataclass(frozen=True)
class _Request:
    """A prompt with the base's reply [tokens] and its log probabilities [tokens, V]; `task`: None for general ones."""

    task: str | None
    prompt: Sequence[int]
    reply: Sequence[int]
    expected: Tensor


class Requests:
    """General questions and prompts of all tasks, with what the base replies.

    Memory: a model in float32, and the log probabilities of some thirty short replies.
    """

    def __init__(self, model: "PreTrainedModel", requests: Sequence[_Request]) -> None:
        """Take a model whose weights are free to be exchanged, and the requests."""
        self._model = model
        self._requests = requests

    def measure(self, expert: Expert, fine_tune: Checkpoint, backbone: Checkpoint) -> Elsewhere:
        """Measure an expert and its fine-tune: two passes over the replies.

        Args:
            expert: E_k; its name is its task's.
            fine_tune: θ_k.
            backbone: θ_m.

        Raises:
            CheckpointError: a model cannot be run.
        """
        assign(self._model, fine_tune)
        tuned = self._distance(None), self._distance(expert.name)
        assign(self._model, backbone)
        with added(self._model, expert):
            found = self._distance(None), self._distance(expert.name)
        assert found[0] is not None
        assert tuned[0] is not None
        return Elsewhere(found[0], tuned[0], found[1], tuned[1])

    def _distance(self, task: str | None) -> float | None:
        """Mean KL to the base on general questions (None), or on prompts of other tasks than `task`."""
        of = [item for item in self._requests if (item.task is None if task is None else item.task not in {None, task})]
        if not of:
            return None
        found = [reply_log_probs(self._model, item.prompt, item.reply) for item in of]
        return mean_divergence([item.expected for item in of], found)


def shortened(reference: GeneralReference) -> GeneralReference:
    """The part of a reference that `ask_elsewhere` uses: some of the questions, with the first tokens of each reply.

    The rest of its log probabilities takes hundreds of megabytes on a large vocabulary.
    """
    return replace(
        reference,
        questions=tuple(_some(reference.questions)),
        prompts=tuple(_some(reference.prompts)),
        replies=tuple(reply[:REPLY_TOKENS] for reply in _some(reference.replies)),
        said=tuple(_some(reference.said)),
        expected=tuple(expected[:REPLY_TOKENS].clone() for expected in _some(reference.expected)),
    )


def ask_elsewhere(
    base: Checkpoint, prompts: Mapping[str, Sequence[Sequence[int]]], reference: GeneralReference | None = None
) -> Requests | None:
    """Ask the base.

    Args:
        base: θ₀.
        prompts: token ids by task; empty: general questions alone are asked.
        reference: what the base says to general questions, which are not asked again then; None: they are asked.

    Returns:
        None if the base has no chat template, or answers too few of the general questions for there to be knowledge
        that could be lost.

    Raises:
        CheckpointError: it cannot be run.
    """
    encoder = chat_encoder(base)
    if encoder is None:
        return None
    every = general_questions()
    questions = [] if reference is not None else _some(every)
    pairs: list[tuple[str | None, Sequence[int]]] = [(None, encoder.encode(Example(q.prompt))) for q in questions]
    pairs += _spread(prompts)
    model = build_model(base.path, device=base.device)
    assign(model, base)
    ends = end_tokens(model, encoder.tokenizer)
    replies = continue_greedily(model, [prompt for _, prompt in pairs], REPLY_TOKENS, ends, _BATCH)
    known = right_answers(questions, decoded(encoder.tokenizer, replies[: len(questions)]))
    if known * len(every) < LEAST_KNOWN * len(questions):
        return None
    requests = [
        _Request(task, prompt, reply, reply_log_probs(model, prompt, reply))
        for (task, prompt), reply in zip(pairs, replies, strict=True)
    ]
    return Requests(model, [*_answered(reference), *requests])


def _some(items: Sequence[T]) -> Sequence[T]:
    """`QUESTIONS` of what there is for each general question, at equal steps."""
    return items[:: max(1, len(items) // QUESTIONS)][:QUESTIONS]


def _answered(reference: GeneralReference | None) -> list[_Request]:
    """General questions that were answered already."""
    if reference is None:
        return []
    short = shortened(reference)
    found = zip(short.prompts, short.replies, short.expected, strict=True)
    return [_Request(None, prompt, reply, expected) for prompt, reply, expected in found]


def _spread(prompts: Mapping[str, Sequence[Sequence[int]]]) -> list[tuple[str | None, Sequence[int]]]:
    """Up to `PROMPTS` prompts: one of each task, then another one; of many tasks at equal steps."""
    tasks = sorted(prompts)[:: max(1, -(-len(prompts) // PROMPTS))]
    longest = max((len(prompts[task]) for task in tasks), default=0)
    found = [(task, prompts[task][turn]) for turn in range(longest) for task in tasks if turn < len(prompts[task])]
    return list(found[:PROMPTS])
