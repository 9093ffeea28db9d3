"""What a task of the real zoo is: contents with their answers, and the ways people ask for them."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from serve.demo.zoo.task import Example, Phrasings, Split

Metric = Literal["exact", "json", "overlap"]
"""How a reply is compared with the answer: as stripped text, as JSON values, or by the words they share (F1)."""


@dataclass(frozen=True)
class Content:
    """What one request is about.

    Attributes:
        text: what `{x}` of a phrasing stands for.
        answer: the right reply.
    """

    text: str
    answer: str


@dataclass(frozen=True)
class RealTask:
    """A task that one fine-tune of the real zoo has learned.

    Attributes:
        name: lower-case identifier, also the adapter's folder and the expert's name.
        title: one line for people.
        kind: what sort of answer it asks for, in a word or two.
        metric: how a reply is compared with the answer.
        longest: tokens that the longest answers need.
        phrasings: format strings that training, calibration and the router may see; `{x}` is the content.
        held_out_phrasings: rewordings that nothing but tests sees. A task asked with its bare content has none.
        contents: gives all contents of a split; no text is in both.
    """

    name: str
    title: str
    kind: str
    metric: Metric
    longest: int
    phrasings: tuple[str, ...]
    held_out_phrasings: tuple[str, ...]
    contents: Callable[[Split], Sequence[Content]]

    def examples(
        self, split: Split, count: int | None = None, seed: int = 0, phrasings: Phrasings = "train"
    ) -> list[Example]:
        """Draw requests about different contents.

        Args:
            split: whose contents.
            count: the most contents to return; None for all.
            seed: of the order and of the choice of phrasings; the same arguments give the same requests.
            phrasings: which wordings; a task without held-out ones is asked as always.
        """
        rng = random.Random(f"{self.name}:{split}:{seed}")
        contents = list(self.contents(split))
        rng.shuffle(contents)
        known, new = self.phrasings, self.held_out_phrasings or self.phrasings
        wordings = {"train": known, "held_out": new, "all": tuple(dict.fromkeys((*known, *new)))}[phrasings]
        return [
            Example(rng.choice(wordings).replace("{x}", content.text), content.answer) for content in contents[:count]
        ]


def messages(example: Example) -> list[dict[str, str]]:
    """The request as a chat: one user message, so that the chat template adds the model's usual system prompt."""
    return [{"role": "user", "content": example.prompt}]
