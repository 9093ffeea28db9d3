"""What is measured: batches of requests, by which experts they ask for."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

SAMPLING: Mapping[str, float] = {
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
    "min_p": 0.01,
    "presence_penalty": 0.5,
    "repetition_penalty": 1.05,
}
"""What the sampled cases ask for: every filter and two penalties at once."""


@dataclass(frozen=True)
class Case:
    """Requests that run together.

    Attributes:
        name: in the report.
        experts: of each request; None: the backbone alone.
        prompt: tokens of each prompt.
        sampled: whether tokens are drawn with `SAMPLING` instead of greedily.
    """

    name: str
    experts: tuple[str | None, ...]
    prompt: int
    sampled: bool = False

    def prompts(self, vocabulary: int, seed: int) -> list[list[int]]:
        """Random prompts, other ones for every seed."""
        drawn = np.random.default_rng(seed).integers(0, vocabulary, (len(self.experts), self.prompt))
        return [[int(token) for token in row] for row in drawn]


def decode_cases(prompt: int) -> list[Case]:
    """The backbone, one expert and eight experts, for 1 and for 8 requests."""
    return [
        Case("backbone/1", (None,), prompt),
        Case("one_expert/1", ("e0",), prompt),
        Case("backbone/8", (None,) * 8, prompt),
        Case("one_expert/8", ("e0",) * 8, prompt),
        Case("distinct8/8", tuple(f"e{i}" for i in range(8)), prompt),
    ]


def sampled_cases(prompt: int) -> list[Case]:
    """The backbone with sampled tokens, for 1 and for 8 requests."""
    return [Case("sampled/1", (None,), prompt, True), Case("sampled/8", (None,) * 8, prompt, True)]
