"""The next token of each row of logits: penalties, temperature, top-k, top-p, min-p and the draw."""

from kernels.sampling.dispatch import sample
from kernels.sampling.penalties import penalise
from kernels.sampling.reference import UNDECIDED, may_be_undecided, sample_at_once
from kernels.sampling.row import SamplingRow

__all__ = ["UNDECIDED", "SamplingRow", "may_be_undecided", "penalise", "sample", "sample_at_once"]
