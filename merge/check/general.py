"""Whether a merged backbone still has the base's own abilities, on requests that no task is about.

Perplexity on plain text alone does not tell: a backbone that answers "What is the capital of France?" with a loop of
nonsense was measured to have the base's perplexity within 0.1 %. So replies to short factual questions are compared,
too. `general.json` has the questions and the texts.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from merge.checkpoint import Checkpoint
from merge.experts.calibration import continue_greedily
from merge.experts.encoding import PromptEncoder
from merge.experts.examples import Example
from merge.experts.likelihood import mean_divergence, reply_log_probs
from merge.experts.running import assign, build_model, device_of, end_tokens, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MOST_DIVERGENCE = 0.1
LEAST_KEPT = 0.9
MOST_PERPLEXITY = 1.03
"""Nats a token, share of the right replies, and ratio to the base's: beyond them a backbone is warned of."""

LEAST_KNOWN = 10
"""Questions that a base must answer rightly: one that answers fewer has no general knowledge that could be lost."""

COMPARED_PARAMETERS = 10**9
"""Parameters up to which models are run on general questions: 4 GB in float32."""

REPLY_TOKENS = 20
_BATCH = 10


@dataclass(frozen=True)
class Question:
    """A short factual question.

    Attributes:
        prompt: what a user asks.
        keyword: what stands in a right answer.
    """

    prompt: str
    keyword: str


@dataclass(frozen=True)
class GeneralAbility:
    """A model beside its base.

    Attributes:
        divergence: KL(base ‖ model) a token of the base's greedy replies, mean over all tokens, in nats.
        kept: share of the questions that the model answers rightly, of those that the base answers rightly. Replies to
            the others are not compared: a greedy reply that is wrong changes with the slightest change of the weights
            (KL 0.003 changed 15 % of them on SmolLM2-135M-Instruct), and no ability is lost by that.
        perplexity_ratio: perplexity on plain text, over the base's.
        questions: how many were asked.
        known: how many of them the base answers rightly.
        example: a question with the base's right reply and the model's wrong one, if there is one.
    """

    divergence: float
    kept: float
    perplexity_ratio: float
    questions: int
    known: int
    example: tuple[str, str, str] | None

    def summary(self) -> str:
        """The three figures in a line."""
        return (
            f"KL to the base {self.divergence:.3f} nats a token, {self.kept:.0%} of the base's {self.known} right "
            f"answers to {self.questions} questions kept, perplexity on plain text {self.perplexity_ratio:.3f} of the "
            "base's"
        )

    def concerns(self) -> list[str]:
        """A sentence for each figure that shows a loss."""
        found = []
        if self.divergence > MOST_DIVERGENCE:
            found.append(
                f"general questions: KL to the base is {self.divergence:.3f} nats a token, above {MOST_DIVERGENCE}"
            )
        if self.kept < LEAST_KEPT:
            text = f"general questions: {self.kept:.0%} of the right answers are kept, less than {LEAST_KEPT:.0%}"
            if self.example is not None:
                prompt, before, after = self.example
                text += f": {prompt!r} was answered {before!r} and is now answered {after!r}"
            found.append(text)
        if self.perplexity_ratio > MOST_PERPLEXITY:
            found.append(f"plain text: the perplexity is {self.perplexity_ratio:.3f} times the base's")
        return found


@cache
def general_questions() -> tuple[Question, ...]:
    """50 short factual questions."""
    return tuple(Question(**item) for item in _document()["questions"])


@cache
def general_texts() -> tuple[str, ...]:
    """A few paragraphs of plain text."""
    return tuple(_document()["texts"])


def plain_text(base: Checkpoint) -> list[list[int]]:
    """Token ids of `general_texts`.

    Raises:
        CheckpointError: the base's tokenizer cannot be read.
    """
    tokenizer = load_tokenizer(base.path)
    return [tokenizer(text)["input_ids"] for text in general_texts()]


def too_large(base: Checkpoint) -> bool:
    """Whether a model has more than `COMPARED_PARAMETERS`."""
    return sum(math.prod(info.shape) for info in base.tensors.values()) > COMPARED_PARAMETERS


def answers(question: Question, reply: str) -> bool:
    """Whether a reply holds the keyword of a right answer, in small or capital letters."""
    return question.keyword.lower() in reply.lower()


def right_answers(questions: Sequence[Question], replies: Sequence[str]) -> int:
    """How many replies answer their question."""
    return sum(map(answers, questions, replies))


def chat_encoder(base: Checkpoint) -> PromptEncoder | None:
    """Makes prompts with a model's own chat template; None if it has none.

    Raises:
        CheckpointError: its tokenizer cannot be read.
    """
    tokenizer = load_tokenizer(base.path)
    template = tokenizer.chat_template
    return PromptEncoder(tokenizer, template) if isinstance(template, str) else None


def decoded(tokenizer: "PreTrainedTokenizerBase", replies: Sequence[Sequence[int]]) -> list[str]:
    """Replies as text."""
    return [str(tokenizer.decode(list(reply), skip_special_tokens=True)).strip() for reply in replies]


@dataclass(frozen=True)
class GeneralReference:
    """What a base says to general questions, and how well it predicts plain text, to compare other models with.

    Attributes:
        questions: Q of them.
        prompts: token ids of each in the base's chat template.
        replies: token ids of the base's greedy replies.
        said: the replies as text.
        expected: of each reply the base's log probabilities [its tokens, vocabulary], float32.
        texts: token ids of the plain texts.
        loss: the base's mean negative log-likelihood of the texts' tokens, in nats.
        known: questions that the base answers rightly.
    """

    questions: tuple[Question, ...]
    prompts: tuple[tuple[int, ...], ...]
    replies: tuple[tuple[int, ...], ...]
    said: tuple[str, ...]
    expected: tuple[Tensor, ...]
    texts: tuple[tuple[int, ...], ...]
    loss: float
    known: int

    @torch.no_grad()
    def divergence(self, model: "PreTrainedModel") -> float:
        """KL(base ‖ model) a token of the base's replies, mean over all tokens, in nats."""
        pairs = zip(self.prompts, self.replies, strict=True)
        found = [reply_log_probs(model, prompt, reply) for prompt, reply in pairs]
        return mean_divergence(self.expected, found)

    @torch.no_grad()
    def perplexity_ratio(self, model: "PreTrainedModel") -> float:
        """The model's perplexity on the plain texts, over the base's."""
        return math.exp(_text_loss(model, self.texts) - self.loss)

    def compare(self, checkpoint: Checkpoint) -> GeneralAbility:
        """Ask a model of the base's shape, for example the backbone, what the base was asked.

        Raises:
            CheckpointError: it cannot be run.
        """
        tokenizer, model = load_tokenizer(checkpoint.path), build_model(checkpoint.path, device=checkpoint.device)
        assign(model, checkpoint)
        replies = continue_greedily(model, self.prompts, REPLY_TOKENS, end_tokens(model, tokenizer), _BATCH)
        after = decoded(tokenizer, replies)
        rows = zip(self.questions, self.said, after, strict=True)
        lost = [row for row in rows if answers(row[0], row[1]) and not answers(row[0], row[2])]
        return GeneralAbility(
            divergence=self.divergence(model),
            kept=1 - len(lost) / self.known if self.known else 1.0,
            perplexity_ratio=self.perplexity_ratio(model),
            questions=len(self.questions),
            known=self.known,
            example=(lost[0][0].prompt, lost[0][1], lost[0][2]) if lost else None,
        )


@torch.no_grad()
def general_reference(base: Checkpoint) -> GeneralReference | None:
    """Ask a base.

    Args:
        base: θ₀.

    Returns:
        None if the base has no chat template, or answers fewer than `LEAST_KNOWN` questions.

    Raises:
        CheckpointError: it cannot be run.
    """
    encoder = chat_encoder(base)
    if encoder is None:
        return None
    tokenizer, questions = encoder.tokenizer, general_questions()
    prompts = [encoder.encode(Example(question.prompt)) for question in questions]
    texts = plain_text(base)
    model = build_model(base.path, device=base.device)
    assign(model, base)
    replies = continue_greedily(model, prompts, REPLY_TOKENS, end_tokens(model, tokenizer), _BATCH)
    said = decoded(tokenizer, replies)
    known = right_answers(questions, said)
    if known < LEAST_KNOWN:
        return None
    return GeneralReference(
        questions=questions,
        prompts=tuple(map(tuple, prompts)),
        replies=tuple(map(tuple, replies)),
        said=tuple(said),
        expected=tuple(reply_log_probs(model, prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)),
        texts=tuple(map(tuple, texts)),
        loss=_text_loss(model, texts),
        known=known,
    )


@cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path(__file__).with_name("general.json").read_text("utf-8"))
    return document


def _text_loss(model: "PreTrainedModel", texts: Sequence[Sequence[int]]) -> float:
    """Mean negative log-likelihood of the texts' tokens, in nats."""
    losses = []
    for text in texts:
        ids = torch.tensor([list(text)], device=device_of(model))
        losses.append(F.cross_entropy(model(input_ids=ids).logits[0, :-1].float(), ids[0, 1:], reduction="none"))
    return float(torch.cat(losses).mean())
