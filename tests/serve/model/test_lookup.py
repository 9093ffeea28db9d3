import torch

from serve.model.lookup import columns_at


def test_column_numbers_read_as_signed_ones_are_the_same() -> None:
    numbers = torch.tensor([[0, 1, 32_767], [32_768, 40_000, 65_535], [7, 8, 9]])
    place = (torch.tensor([1, 0, 1]), slice(None))
    for index in (numbers.to(torch.uint16), numbers.to(torch.int32)):
        for signed in (False, True):
            found = columns_at(index, place, signed)
            assert found.dtype == torch.int64
            assert torch.equal(found, numbers[place])
