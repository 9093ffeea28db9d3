"""Which of some labels continues a prompt most likely: one prefill of the prompt, and the labels beside each other."""

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from serve.api.catalogue import Target
from serve.api.errors import context_overflow, invalid
from serve.api.prefill import prefill, prompt_params
from serve.api.prompts import text_tokens
from serve.api.service import Runtime
from serve.engine import Output, Request
from serve.metrics import HttpMetrics


@dataclass(frozen=True)
class Question:
    """One prompt with its labels.

    Attributes:
        target: what answers.
        prompt: tokens of the prompt alone.
        texts: for each label, the tokens of prompt and label together.
        start: the first of them that is scored: up to there, all are the prompt's.
    """

    target: Target
    prompt: tuple[int, ...]
    texts: tuple[tuple[int, ...], ...]
    start: int

    @classmethod
    def of(cls, runtime: Runtime, target: Target, text: str, labels: Sequence[str], special: bool) -> "Question":
        """Tokenise. A label's first characters may share a token with the prompt's last ones.

        Raises:
            ApiError: 400, prompt and label are longer than the context, or the prompt is empty.
        """
        prompt = text_tokens(runtime, "input", text, special)
        texts = tuple(text_tokens(runtime, "input", text + label, special) for label in labels)
        start = min(_common(prompt, whole) for whole in texts)
        # A text that another begins with would have nothing of its own to score.
        start = min(start, *(len(whole) - 1 for whole in texts))
        if start < 1:
            raise invalid("input", "the prompt is empty, or shares its first token with a label; begin it with a word")
        if (longest := max(map(len, texts))) > (most := runtime.catalogue.max_model_len):
            raise context_overflow("input", most, f"prompt and label have {longest} tokens")
        return cls(target, prompt, texts, start)


@dataclass(frozen=True)
class Verdict:
    """What a question's labels are worth.

    Attributes:
        logprobs: of each label, given the prompt.
        probs: of each label among the labels.
    """

    logprobs: tuple[float, ...]
    probs: tuple[float, ...]


async def classify(
    runtime: Runtime, metrics: HttpMetrics, questions: Sequence[Question], mean: bool, priority: int
) -> list[Verdict]:
    """Score all labels of all questions.

    Args:
        runtime: the model.
        metrics: told of the requests.
        questions: what to score.
        mean: divide a label's log-probability by its number of tokens.
        priority: of the requests.

    Raises:
        ApiError: the engine refuses or fails.
    """
    unique = uuid.uuid4().hex
    # The prompts first: the labels find them in the prefix cache.
    await prefill(
        runtime,
        metrics,
        [
            Request(f"{unique}-{number}", one.prompt[: one.start], prompt_params(), one.target.experts, priority)
            for number, one in enumerate(questions)
        ],
    )
    requests = [
        Request(
            request_id=f"{unique}-{number}-{label}",
            prompt=text,
            params=prompt_params(0),
            experts=one.target.experts,
            priority=priority,
            prompt_counts=False,
            scored_from=one.start,
        )
        for number, one in enumerate(questions)
        for label, text in enumerate(one.texts)
    ]
    outputs = iter(await prefill(runtime, metrics, requests))
    return [_verdict([_logprob(next(outputs), one.start, mean) for _ in one.texts]) for one in questions]


def _logprob(output: Output, start: int, mean: bool) -> float:
    found = [token.logprob or 0.0 for token in (output.prompt_logprobs or ())[start:] if token is not None]
    return sum(found) / (len(found) if mean else 1)


def _verdict(logprobs: Sequence[float]) -> Verdict:
    highest = max(logprobs)
    weights = [math.exp(logprob - highest) for logprob in logprobs]
    return Verdict(tuple(logprobs), tuple(weight / sum(weights) for weight in weights))


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    pairs = zip(first, second, strict=False)
    return next((number for number, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))
