"""What is asked, when, and for which expert: drawn from a seed, the same for every server."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


class WorkloadError(ValueError):
    """A part of a workload that cannot be drawn; the message names it and what would be right."""


@dataclass(frozen=True)
class Popularity:
    """Which expert a request asks for.

    Attributes:
        kind: `backbone`: none; `identical`: the first; `distinct`: one after another; `uniform`: any; `zipf`: the
            i-th with a probability proportional to i^-alpha.
        alpha: exponent of `zipf`.
    """

    kind: Literal["backbone", "identical", "distinct", "uniform", "zipf"]
    alpha: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Popularity":
        """Read `identical`, `distinct`, `uniform`, `backbone` or `zipf:1.1`.

        Raises:
            WorkloadError: it is none of these.
        """
        kind, _, alpha = text.partition(":")
        if kind in {"backbone", "identical", "distinct", "uniform"} and not alpha:
            return cls(kind)  # type: ignore[arg-type]  # one of the literals, as was just tested
        if kind == "zipf" and (value := _number(alpha or "1")) is not None and value >= 0:
            return cls("zipf", value)
        raise WorkloadError(f"popularity {text!r} is not backbone, identical, distinct, uniform or zipf:ALPHA")

    def draw(self, experts: Sequence[str], count: int, random: np.random.Generator) -> list[str | None]:
        """An expert for each of `count` requests; None: the backbone alone.

        Raises:
            WorkloadError: there are no experts to choose from.
        """
        if self.kind == "backbone":
            return [None] * count
        if not experts:
            raise WorkloadError(f"popularity {self.kind} needs experts, and the server names none")
        if self.kind == "identical":
            return [experts[0]] * count
        if self.kind == "distinct":
            return [experts[i % len(experts)] for i in range(count)]
        weights = np.ones(len(experts))
        if self.kind == "zipf":
            weights = np.arange(1, len(experts) + 1, dtype=np.float64) ** -self.alpha
        return [experts[i] for i in random.choice(len(experts), count, p=weights / weights.sum())]


@dataclass(frozen=True)
class Lengths:
    """Numbers of tokens, uniform between two bounds, both included."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> "Lengths":
        """Read `32` or `16-64`.

        Raises:
            WorkloadError: it is neither, or below 1.
        """
        low, _, high = text.partition("-")
        if low.isdigit() and (high or low).isdigit() and 1 <= int(low) <= int(high or low):
            return cls(int(low), int(high or low))
        raise WorkloadError(f"length {text!r} is neither a number of tokens, as 32, nor a range, as 16-64")

    def draw(self, count: int, random: np.random.Generator) -> list[int]:
        """`count` lengths."""
        return [int(n) for n in random.integers(self.low, self.high + 1, count)]


@dataclass(frozen=True)
class Arrivals:
    """When requests come.

    Attributes:
        kind: `poisson` or `constant`: at a rate, however slow the answers are (open loop); `closed`: as many at a time
            as there are users, each asking again once it was answered.
        rate: requests a second, of the open loops.
        users: of the closed loop.
    """

    kind: Literal["poisson", "constant", "closed"]
    rate: float = 0.0
    users: int = 0

    def times(self, count: int, random: np.random.Generator) -> Iterator[float]:
        """Seconds from the start at which an open loop sends its requests."""
        if self.kind == "constant":
            return (i / self.rate for i in range(count))
        return (float(time) for time in np.cumsum(random.exponential(1 / self.rate, count)))


@dataclass(frozen=True)
class Item:
    """One request.

    Attributes:
        expert: its expert; None: the backbone alone.
        prompt: text, or token ids.
        tokens: how many to generate.
    """

    expert: str | None
    prompt: str | list[int]
    tokens: int


@dataclass(frozen=True)
class Workload:
    """Requests that a seed determines.

    Attributes:
        count: measured requests.
        warm_up: requests before them, which are not measured.
        popularity, prompt_length, output_length: what they are drawn from.
        seed: of all that is drawn.
        vocabulary: synthetic prompts are token ids from a quarter of it on, and below it.
        prompts: texts to ask in turn, in place of synthetic prompts.
    """

    count: int
    warm_up: int
    popularity: Popularity
    prompt_length: Lengths
    output_length: Lengths
    seed: int = 0
    vocabulary: int = 1000
    prompts: tuple[str, ...] = ()

    def items(self, experts: Sequence[str]) -> list[Item]:
        """All requests, those of the warm-up first."""
        random, total = self.random(), self.warm_up + self.count
        chosen = self.popularity.draw(experts, total, random)
        outputs = self.output_length.draw(total, random)
        if self.prompts:
            asked: list[str | list[int]] = [self.prompts[i % len(self.prompts)] for i in range(total)]
        else:
            lengths = self.prompt_length.draw(total, random)
            # The first ids are special tokens in most vocabularies: an end token in a prompt leads to an empty reply.
            least = self.vocabulary // 4
            asked = [random.integers(least, self.vocabulary, length).tolist() for length in lengths]
        return [Item(*parts) for parts in zip(chosen, asked, outputs, strict=True)]

    def random(self) -> np.random.Generator:
        """A generator for the items, or, drawn on, for the arrivals."""
        return np.random.default_rng(self.seed)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
