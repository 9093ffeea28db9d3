import mmap

import pytest
import torch

from serve.model import huge_pages
from serve.model.huge_pages import ask_for_huge_pages


@pytest.mark.parametrize("start", [0, 1, 1024, 777_777])
def test_values_stay(start: int) -> None:
    whole = torch.arange(3_000_000, dtype=torch.int32)
    ask_for_huge_pages(whole[start : start + 2_000_000])
    assert torch.equal(whole, torch.arange(3_000_000, dtype=torch.int32))


def test_only_whole_pages_of_the_tensor_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, int]] = []
    monkeypatch.setattr(huge_pages, "_madvise", lambda: lambda *call: asked.append(call))
    tensor = torch.zeros(5 * mmap.PAGESIZE, dtype=torch.uint8)[1:-1]
    ask_for_huge_pages(tensor)
    assert {advice for _, _, advice in asked} == {huge_pages.HUGE_PAGE, huge_pages.COLLAPSE}
    for address, size, _ in asked:
        assert address % mmap.PAGESIZE == size % mmap.PAGESIZE == 0
        assert tensor.data_ptr() <= address < address + size <= tensor.data_ptr() + tensor.nbytes
    asked.clear()
    ask_for_huge_pages(torch.zeros(3, dtype=torch.uint8))
    assert not asked


def test_a_system_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_madvise", lambda: None)
    ask_for_huge_pages(torch.zeros(100_000))
