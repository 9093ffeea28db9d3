"""What constrains a request's tokens from outside the engine: a grammar, a schema, a list of choices."""

from collections.abc import Sequence
from typing import Protocol, Self

from torch import Tensor


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
