"""What constrains single tokens of a request: its own rules, prepared once for all draws, and masks of grammars."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

_SPARSE = 8
"""Entries for fewer than one token in this many are kept as a list, others as a value for every token."""


@dataclass(frozen=True)
class TokenRules:
    """Biases, allowed tokens and bad words as a draw needs them. The copies of a request share one.

    Attributes:
        bias: [n] int64 tokens and [n] float32 what is added to their logits, or None.
        allowed: [n] int64, the only tokens that may be drawn, or None.
        addend: [m] float32, added to the logits of the first m tokens: biases and bans of many tokens, or None.
        closed: whether tokens beyond those of `addend` may not be drawn.
        bad_words: sequences that the output must not contain, or None.
        ranges: the lowest and the highest token that each field names.
    """

    bias: tuple[Tensor, Tensor] | None
    allowed: Tensor | None
    addend: Tensor | None
    closed: bool
    bad_words: "BadWords | None"
    ranges: Mapping[str, tuple[int, int]]

    @classmethod
    def of(
        cls,
        logit_bias: Mapping[int, float],
        allowed_token_ids: Sequence[int] | None,
        bad_words: Sequence[tuple[int, ...]],
    ) -> "TokenRules | None":
        """The rules of a request's parameters; None if it sets none."""
        if not logit_bias and allowed_token_ids is None and not bad_words:
            return None
        ranges: dict[str, tuple[int, int]] = {}
        bias = allowed = words = None
        addends: list[Tensor] = []
        if logit_bias:
            tokens = torch.tensor(list(logit_bias))
            values = torch.tensor(list(logit_bias.values()), dtype=torch.float32)
            ranges["logit_bias"] = _range(tokens)
            if _is_sparse(tokens):
                bias = tokens, values
            else:
                addends.append(_spread(tokens, values, 0.0))
        closed = False
        if allowed_token_ids is not None:
            tokens = torch.tensor(list(dict.fromkeys(allowed_token_ids)))
            ranges["allowed_token_ids"] = _range(tokens)
            if _is_sparse(tokens):
                allowed = tokens
            else:
                closed = True
                addends.append(_spread(tokens, torch.zeros(len(tokens)), -torch.inf))
        if bad_words:
            words = BadWords(bad_words)
            ranges["bad_words"] = words.range
        return cls(bias, allowed, _sum(addends, closed), closed, words, ranges)

    @property
    def bans(self) -> bool:
        """Whether any token is forbidden outright."""
        return self.allowed is not None or self.closed or self.bad_words is not None


class BadWords:
    """Token sequences that must not be completed.

    Attributes:
        range: the lowest and the highest of all their tokens.

    Args:
        words: sequences of at least one token; repetitions cost nothing.
    """

    def __init__(self, words: Sequence[tuple[int, ...]]) -> None:
        distinct = dict.fromkeys(words)
        self.range = min(map(min, distinct)), max(map(max, distinct))
        self._always = torch.tensor([word[0] for word in distinct if len(word) == 1], dtype=torch.int64)
        # Only words whose last token but one was just generated can be completed, so no draw looks at all of them.
        self._after: defaultdict[int, list[tuple[list[int], int]]] = defaultdict(list)
        for *before, last in distinct:
            if before:
                self._after[before[-1]].append((before, last))

    def completing(self, output: list[int]) -> Tensor:
        """Tokens [n] int64 that would complete a word after these generated tokens."""
        candidates = self._after.get(output[-1], ()) if output else ()
        found = [last for before, last in candidates if output[-len(before) :] == before]
        return torch.cat([self._always, torch.tensor(found)]) if found else self._always


def _range(tokens: Tensor) -> tuple[int, int]:
    return int(tokens.min()), int(tokens.max())


def _is_sparse(tokens: Tensor) -> bool:
    """Whether the tokens are few or far apart, so that a dense tensor would be much larger than the list."""
    return len(tokens) * _SPARSE <= int(tokens.max())


def _spread(tokens: Tensor, values: Tensor, others: float) -> Tensor:
    dense = torch.full((max(int(tokens.max()) + 1, 1),), others)
    dense[tokens.clamp(min=0)] = values
    return dense


def _sum(addends: Sequence[Tensor], closed: bool) -> Tensor | None:
    """The sum of addends of different lengths; `closed`: no token beyond the last one's end may be drawn."""
    if not addends:
        return None
    length = len(addends[-1]) if closed else max(map(len, addends))
    total = torch.zeros(length)
    for addend in addends:
        total[: len(addend)] += addend[:length]
    return total


class TokenMask(Protocol):
    """Follows one request's output and says what may come next.

    The engine calls it from its thread, `prepare` and `mask` before a draw and `accept` after it, so all must be quick.
    A request that is preempted keeps its tokens, hence also its mask's state.
    """

    @classmethod
    def prepare(cls, masks: Sequence[Self]) -> None:
        """Work that several masks can do together, before each of them masks its logits."""

    def mask(self, logits: Tensor) -> None:
        """Put -inf, in place, on the logits [vocab] float32 of the tokens that must not come next."""

    def accept(self, token: int) -> None:
        """Note a drawn token."""
