from pathlib import Path

import pytest

from benchmarks.quality.store import OutOfTimeError, Store


def test_a_result_is_computed_once_a_key(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> int:
        calls.append(1)
        return len(calls)

    store = Store(tmp_path)
    assert store.result({"a": 1, "b": 2}, compute) == 1
    assert store.result({"b": 2, "a": 1}, compute) == 1
    assert Store(tmp_path).result({"a": 1, "b": 2}, compute) == 1
    assert store.result({"a": 1, "b": 3}, compute) == 2


def test_when_the_time_is_over_what_is_there_can_still_be_read(tmp_path: Path) -> None:
    Store(tmp_path).result({"a": 1}, lambda: "kept")
    late = Store(tmp_path, lambda: False)
    assert late.result({"a": 1}, lambda: "again") == "kept"
    with pytest.raises(OutOfTimeError):
        late.result({"a": 2}, lambda: "new")
    assert Store(tmp_path).result({"a": 2}, lambda: "later") == "later"
