import pytest

from merge import parallel
from merge.parallel import fitting, in_order


@pytest.mark.parametrize(
    ("free", "each", "threads"), [(0, 1 << 30, 1), (7 << 30, 1 << 30, 3), (64 << 30, 1 << 30, 8), (0, 0, 1)]
)
def test_threads_fit_into_half_of_the_free_memory(
    monkeypatch: pytest.MonkeyPatch, free: int, each: int, threads: int
) -> None:
    monkeypatch.setattr(parallel, "available_bytes", lambda _device: free)
    assert fitting(8, each) == threads


def test_as_many_threads_as_cores_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def cores() -> int:
        asked.append(2)
        return 2

    monkeypatch.setattr(parallel, "available_cores", cores)
    assert list(in_order([3, 1, 2], lambda key: key * key, None)) == [(3, 9), (1, 1), (2, 4)]
    assert list(in_order([3], lambda key: key, 1)) == [(3, 3)]
    assert len(asked) == 1
