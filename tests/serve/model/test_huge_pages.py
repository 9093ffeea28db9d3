import pytest
import torch

from serve.model import huge_pages
from serve.model.huge_pages import PAGE, hold_together


def test_each_tensor_gets_memory_of_its_own() -> None:
    tensors = [torch.empty(3, 5), torch.empty(7, dtype=torch.bfloat16), torch.empty(0), torch.empty(129, 65)]
    hold_together(tensors)
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    assert [tuple(tensor.shape) for tensor in tensors] == [(3, 5), (7,), (0,), (129, 65)]
    assert [tensor.dtype for tensor in tensors] == [torch.float32, torch.bfloat16, torch.float32, torch.float32]
    for number, tensor in enumerate(tensors):
        assert tensor.is_contiguous()
        assert bool((tensor == number).all())


def test_they_lie_one_after_another_from_the_start_of_a_huge_page() -> None:
    tensors = [torch.empty(1000, dtype=torch.uint8), torch.empty(64), torch.empty(1)]
    hold_together(tensors)
    first = tensors[0].data_ptr()
    assert first % PAGE == 0
    assert [tensor.data_ptr() - first for tensor in tensors] == [0, 1024, 1280]


def test_whole_pages_are_asked_for_within_the_memory_they_lie_in(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, int]] = []
    monkeypatch.setattr(huge_pages, "_madvise", lambda: lambda *call: asked.append(call))
    tensor = torch.empty(PAGE + 1, dtype=torch.uint8)
    hold_together([tensor])
    assert asked == [(tensor.data_ptr(), 2 * PAGE, huge_pages.ADVICE)]
    assert tensor.data_ptr() + 2 * PAGE <= tensor.untyped_storage().data_ptr() + tensor.untyped_storage().nbytes()


def test_a_system_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_madvise", lambda: None)
    tensor = torch.empty(100_000)
    hold_together([tensor])
    assert torch.equal(tensor.fill_(1), torch.ones(100_000))


def test_other_devices_are_left_alone() -> None:
    tensor = torch.empty(10, device="meta")
    hold_together([tensor])
    assert tensor.device.type == "meta"
