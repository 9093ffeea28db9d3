"""The next token of each row of logits: penalties, temperature, top-k, top-p, min-p and the draw."""

from kernels.sampling.dispatch import sample
from kernels.sampling.penalties import penalise
from kernels.sampling.row import SamplingRow

__all__ = ["SamplingRow", "penalise", "sample"]
