"""The linear layer whose tokens may each carry experts: `expert_linear`, its bank of experts and its batch plan."""

from kernels.expert_linear.bank import ExpertBank
from kernels.expert_linear.batch import ExpertBatch, ExpertGroup
from kernels.expert_linear.dispatch import expert_linear

__all__ = ["ExpertBank", "ExpertBatch", "ExpertGroup", "expert_linear"]
