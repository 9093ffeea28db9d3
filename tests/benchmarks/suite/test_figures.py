import json

import pytest

from benchmarks.suite.figures import FiguresError, compare, numbers, read


def test_numbers_have_the_path_to_them_as_names():
    report = {"a": {"b": 1, "c": [2.5, {"d": 3}]}, "text": "x", "none": None, "flag": True}
    assert dict(numbers(report, "r")) == {"r/a/b": 1.0, "r/a/c/0": 2.5, "r/a/c/1/d": 3.0}


def test_what_moved_is_more_than_the_repetitions_differ():
    before = {"faster": (10.0, 11.0, 12.0), "noise": (10.0, 14.0, 12.0), "same": (5.0, 5.0), "gone": (1.0,)}
    after = {"faster": (8.0, 8.5, 9.0), "noise": (13.0, 15.0, 16.0), "same": (5.05, 5.05), "new": (1.0,)}
    changes = {change.name: change for change in compare(before, after, threshold=0.02)}
    assert set(changes) == {"faster", "noise", "same"}
    assert {name for name, change in changes.items() if change.moved} == {"faster"}
    assert changes["faster"].relative == pytest.approx(8.5 / 11 - 1)
    assert changes["faster"].spread == pytest.approx(2 / 11)


def test_the_largest_change_comes_first():
    changes = compare({"a": (1.0,), "b": (1.0,), "c": (0.0,)}, {"a": (1.1,), "b": (0.5,), "c": (0.0,)}, 0.02)
    assert [change.name for change in changes] == ["b", "a", "c"]
    assert not changes[-1].moved


def test_a_file_is_read_or_named(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"figures": {"a": [1, 2], "empty": []}}))
    assert read(path) == {"a": (1.0, 2.0)}
    path.write_text("[]")
    with pytest.raises(FiguresError, match=r"r\.json is not a file that"):
        read(path)
    with pytest.raises(FiguresError, match="No such file"):
        read(tmp_path / "none.json")
