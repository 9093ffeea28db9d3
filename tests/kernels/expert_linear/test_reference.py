import torch

from kernels.expert_linear import ExpertBank, ExpertBatch, LowRankBank
from kernels.expert_linear.reference import expert_linear_reference


def test_by_hand() -> None:
    bank = ExpertBank.allocate(2, 2, 3, 2, torch.float32)
    bank.load(0, torch.tensor([[0, 2], [1, 1]]), torch.tensor([[10.0, 20.0], [1.0, 2.0]]))
    bank.load(1, torch.tensor([[0], [0]]), torch.tensor([[100.0], [0.0]]))
    x = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    weight = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 2.0]])
    batch = ExpertBatch.from_slots([[0, 1], [-1, 1], [-1, -1]], [[0.5, 2.0], [9.0, 1.0], [9.0, 9.0]])
    got = expert_linear_reference(x, weight, torch.tensor([1.0, 2.0]), bank, batch)
    assert got.tolist() == [[7 + 35 + 200, 8 + 3], [7 + 100, 8], [7, 8]]


def test_low_rank_by_hand() -> None:
    bank = LowRankBank.allocate(2, [(1, 1), (1, 1)], 3, torch.float32)
    bank.load(0, [(torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[3.0]]), torch.tensor([0.5])), None])
    bank.load(1, [None, (torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[5.0]]), torch.tensor([2.0]))])
    x = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    weight = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 2.0]])
    batch = ExpertBatch.from_slots([[0, 1], [-1, 1], [-1, -1]], [[0.5, 2.0], [9.0, 1.0], [9.0, 9.0]])
    got = expert_linear_reference(x, weight, None, None, batch, bank)
    assert got.tolist() == [[6 + 0.5 * 3 * 0.5 * 7, 6 + 2 * 5 * 2 * 2], [6, 6 + 5 * 2 * 2], [6, 6]]
