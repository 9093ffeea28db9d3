"""Which tokens a sequence has seen, for penalties."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_ROOM = 64


class SeenTokens:
    """The distinct tokens of a sequence and how often each was generated, kept up to date token by token.

    Args:
        prompt: tokens that count as seen before anything was generated.
        output: tokens generated so far.
    """

    def __init__(self, prompt: Sequence[int], output: Sequence[int]) -> None:
        self._prompt = np.unique(np.asarray(prompt, dtype=np.int64))
        self._count = len(self._prompt)
        self._tokens = np.concatenate([self._prompt, np.empty(_ROOM, dtype=np.int64)])
        self._times = np.zeros(len(self._tokens), dtype=np.float32)
        self._place: dict[int, int] = {}
        for token in output:
            self.append(token)

    @property
    def tokens(self) -> Tensor:
        """[n] int64, distinct."""
        return torch.from_numpy(self._tokens[: self._count])

    @property
    def times(self) -> Tensor:
        """[n] float32: how often each was generated, 0 for a token that only the prompt has."""
        return torch.from_numpy(self._times[: self._count])

    def append(self, token: int) -> None:
        """Note a generated token."""
        place = self._place.get(token)
        if place is None:
            place = self._place[token] = self._find(token)
        self._times[place] += 1

    def _find(self, token: int) -> int:
        at = int(np.searchsorted(self._prompt, token))
        if at < len(self._prompt) and self._prompt[at] == token:
            return at
        if self._count == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.empty_like(self._tokens)])
            self._times = np.concatenate([self._times, np.zeros_like(self._times)])
        self._tokens[self._count] = token
        self._count += 1
        return self._count - 1
