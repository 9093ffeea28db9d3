"""The linear layer whose tokens may each carry experts: `expert_linear`, its banks of experts and its batch plan."""

from kernels.expert_linear.bank import ExpertBank
from kernels.expert_linear.batch import ExpertBatch, ExpertGroup
from kernels.expert_linear.dispatch import expert_linear
from kernels.expert_linear.low_rank import LowRankBank
from kernels.expert_linear.packed_weight import PackedWeight

__all__ = ["ExpertBank", "ExpertBatch", "ExpertGroup", "LowRankBank", "PackedWeight", "expert_linear"]
