from pathlib import Path

import numpy as np
import pytest

from merge.router import read_foreign, read_labelled, routing_quality

CHANCES = np.array([[0.9, 0.05], [0.2, 0.6], [0.5, 0.4], [0.1, 0.3], [0.2, 0.1], [0.7, 0.1]])
LABELS = ["a", "b", "b", "b", None, None]


def test_a_router_on_labelled_prompts() -> None:
    quality = routing_quality(("a", "b"), CHANCES, LABELS, 0.4)
    assert (quality.prompts, quality.foreign) == (4, 2)
    assert (quality.accuracy, quality.routed, quality.coverage) == (0.75, 0.5, 0.75)
    assert (quality.foreign_routed, quality.auroc) == (0.5, 5 / 8)
    assert quality.tasks == ("a", "b", "none")
    assert quality.confusion == ((1, 0, 0), (1, 1, 1), (1, 0, 1))
    first, last = quality.curve[0], quality.curve[-1]
    assert (first.threshold, first.coverage, first.accuracy) == (0.0, 1.0, 0.75)
    assert (last.threshold, last.coverage, last.accuracy) == (1.0, 0.0, None)


def test_labels_that_the_router_does_not_know_are_rows_that_are_never_right() -> None:
    quality = routing_quality(("a", "b"), CHANCES[:2], ["a", "c"], 0.4)
    assert (quality.accuracy, quality.auroc, quality.tasks) == (0.5, None, ("a", "b", "c"))
    assert quality.confusion == ((1, 0, 0), (0, 0, 0), (0, 1, 0))
    with pytest.raises(ValueError, match="no prompt belongs to an expert"):
        routing_quality(("a", "b"), CHANCES[:1], [None], 0.4)


def test_labelled_files(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"text": "one", "task": "a"}\n\n{"prompt": "two", "label": null}\n')
    assert read_labelled(file) == [("one", "a"), ("two", None)]
    for line, message in (
        ("{", "line 1 is not valid JSON"),
        ("[1]", "must be an object"),
        ('{"task": "a"}', "must hold the prompt as text or prompt"),
        ('{"text": "a"}', "task, expert or label"),
        ("", "holds no prompt"),
    ):
        file.write_text(line)
        with pytest.raises(ValueError, match=message):
            read_labelled(file)
    with pytest.raises(ValueError, match="cannot be read"):
        read_labelled(tmp_path / "missing")


def test_foreign_files(tmp_path: Path) -> None:
    file = tmp_path / "foreign.txt"
    file.write_text('hello\n{"text": "there"}\n{"prompt": "you"}\nhello\n{ not JSON\n')
    assert read_foreign(file) == ["hello", "there", "you", "{ not JSON"]
    file.write_text('{"other": 1}\n')
    with pytest.raises(ValueError, match="line 1: a JSON line must hold the prompt as text or prompt"):
        read_foreign(file)
    file.write_text("\n")
    with pytest.raises(ValueError, match="holds no prompt"):
        read_foreign(file)
