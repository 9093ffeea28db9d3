"""What a task of the zoo is: an endless supply of items, and the ways people ask for them."""

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Split = Literal["train", "test"]
Phrasings = Literal["train", "held_out", "all"]

TEST_SHARE = 8
"""One content in this many belongs to the test split."""

_MOST_REPEATS = 200
"""After this many known prompts in a row a task is taken to have no more."""


@dataclass(frozen=True)
class Example:
    """One request and the only right reply to it.

    Attributes:
        prompt: What a person types; one line, printable ASCII.
        answer: The reply, without the newline that separates it from the prompt.
    """

    prompt: str
    answer: str


@dataclass(frozen=True)
class Item:
    """One content of a task, before a request about it is phrased.

    Attributes:
        fields: What the braces of a phrasing are filled with.
        answer: The right reply.
        key: The content's identity. Two writings of one content (`March 7, 2024`, `7 March 2024`)
            share a key, so that they cannot end up on both sides of the split.
    """

    fields: Mapping[str, str]
    answer: str
    key: str


@dataclass(frozen=True)
class Task:
    """A task that one fine-tune of the zoo has learned.

    Attributes:
        name: Lower-case identifier, also the fine-tune's folder and the expert's name.
        title: One line for people.
        phrasings: Format strings that training, calibration and the router may see.
        held_out_phrasings: Rewordings that calibration and the router never see.
        code: What the skill is called in the formal notation that the base is pretrained on.
        payload: The format string of a content in that notation.
        draw: Draws one item from a random generator.
    """

    name: str
    title: str
    phrasings: tuple[str, ...]
    held_out_phrasings: tuple[str, ...]
    code: str
    payload: str
    draw: Callable[[random.Random], Item]

    def split_of(self, key: str) -> Split:
        """Return the split that a content belongs to, a function of its hash alone."""
        digest = hashlib.sha256(f"{self.name}:{key}".encode()).digest()
        return "test" if int.from_bytes(digest[:4], "big") % TEST_SHARE == 0 else "train"

    def draw_from(self, split: Split, rng: random.Random) -> Item:
        """Draw items until one belongs to `split`."""
        while True:
            item = self.draw(rng)
            if self.split_of(item.key) == split:
                return item

    def generate(self, split: Split, count: int, seed: int, phrasings: Phrasings = "train") -> list[Example]:
        """Generate distinct prompts with their answers.

        Args:
            split: Whose contents to use; the two splits share none.
            count: How many examples.
            seed: The same arguments give the same examples.
            phrasings: Which wordings to use; `all` mixes both kinds in proportion to their number.

        Returns:
            `count` examples with distinct prompts.

        Raises:
            ValueError: An argument is out of range, or the task has fewer distinct prompts than `count`.
        """
        if split not in get_args(Split):
            raise ValueError(f"split is {split!r}; it must be one of {', '.join(get_args(Split))}")
        if phrasings not in get_args(Phrasings):
            raise ValueError(f"phrasings is {phrasings!r}; it must be one of {', '.join(get_args(Phrasings))}")
        if count < 0:
            raise ValueError(f"count is {count}; it must be 0 or more")
        templates = {
            "train": self.phrasings,
            "held_out": self.held_out_phrasings,
            "all": self.phrasings + self.held_out_phrasings,
        }[phrasings]
        rng = random.Random(f"{self.name}:{split}:{phrasings}:{seed}")
        found: dict[str, Example] = {}
        repeats = 0
        while len(found) < count:
            item = self.draw_from(split, rng)
            prompt = rng.choice(templates).format(**item.fields)
            repeats = repeats + 1 if prompt in found else 0
            if repeats == _MOST_REPEATS:
                raise ValueError(f"task {self.name} has too few distinct {split} prompts for a count of {count}")
            found[prompt] = Example(prompt, item.answer)
        return list(found.values())
