"""What a decoder layer must hold for its steps to be compiled."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

from torch import Tensor

from kernels.decoder.math import LayerMath
from kernels.expert_linear import ExpertBank, LowRankBank, PackedWeight


class NormWeights(Protocol):
    """A root-mean-square norm."""

    @property
    def weight(self) -> Tensor:
        """`[H]`."""

    @property
    def delta(self) -> Tensor | None:
        """`[slots, H]` fp32: what every slot adds to the weight."""


class LinearWeights(Protocol):
    """A linear layer whose tokens may each carry experts."""

    @property
    def weight(self) -> Tensor | PackedWeight:
        """`[N, K]`."""

    @property
    def bias(self) -> Tensor | None:
        """`[N]`."""

    @property
    def bank(self) -> ExpertBank | None:
        """The slots' sparse residuals of the weight."""

    @property
    def low_rank(self) -> LowRankBank | None:
        """The slots' low-rank residuals of the weight."""

    @property
    def bias_delta(self) -> Tensor | None:
        """`[slots, N]` fp32: what every slot adds to the bias."""


class Layer(Protocol):
    """Attention and gated MLP, each added to the residual stream; norms are before them, after them, or both."""

    @property
    def math(self) -> LayerMath:
        """What the layer computes with its weights."""

    @property
    def rotation(self) -> Hashable:
        """Which of a step's angles the layer rotates by."""

    @property
    def window(self) -> int | None:
        """How many of the most recent positions the attention sees; None: all."""

    @property
    def input_norm(self) -> NormWeights | None:
        """The norm of the attention's input."""

    @property
    def qkv(self) -> LinearWeights:
        """Rows of all query heads, then of all key heads, then of all value heads."""

    @property
    def q_norm(self) -> NormWeights | None:
        """The norm of queries before the rotation; None without `math.head_norms`."""

    @property
    def k_norm(self) -> NormWeights | None:
        """The norm of keys; None if `q_norm` is None."""

    @property
    def output(self) -> LinearWeights:
        """From all heads' values to the residual stream."""

    @property
    def output_norm(self) -> NormWeights | None:
        """The norm of the attention's output."""

    @property
    def mlp_norm(self) -> NormWeights | None:
        """The norm of the MLP's input."""

    @property
    def gate_up(self) -> LinearWeights:
        """Rows of the gate, then as many to be multiplied with it."""

    @property
    def down(self) -> LinearWeights:
        """Back to the residual stream."""

    @property
    def down_norm(self) -> NormWeights | None:
        """The norm of the MLP's output."""
