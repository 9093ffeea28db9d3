import torch

from kernels.expert_linear import ExpertBank, ExpertBatch
from serve.model.layers import Embedding


def test_an_experts_columns_beyond_15_bits_are_looked_up() -> None:
    """Column numbers of 16 bits are read as signed ones, which a GPU can index."""
    columns = 65_536
    embedding = Embedding(3, columns, False, torch.float32, torch.device("cpu"))
    embedding.weight.zero_()
    embedding.bank = ExpertBank.allocate(2, 3, columns, 3, torch.bfloat16)
    index = torch.tensor([[0, 32_767, 32_768], [1, 40_000, 65_535], [7, 8, 9]])
    embedding.bank.load(1, index, torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]))
    found = embedding.lookup(torch.tensor([1, 0, 2]), ExpertBatch.from_slots([1, 1, -1]))
    want = torch.zeros(3, columns)
    want[0, index[1]], want[1, index[0]] = torch.tensor([4.0, 5.0, 6.0]), torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(found, want)
