import json
from pathlib import Path

import pytest
import torch

from benchmarks.quality.__main__ import UNFINISHED, main
from benchmarks.quality.store import Store
from benchmarks.quality.vision import VisionDomain
from benchmarks.quality.vision.images import POOL, TASKS, digits, task_data


def test_views_are_of_the_same_images_and_always_the_same() -> None:
    images, numbers = digits()
    for task in (*TASKS, POOL[0]):
        found, labels = task_data(task)
        assert found.shape == (1797, 1, 8, 8)
        assert torch.equal(found, task_data(task)[0])
        assert len(labels) == len(numbers)
    assert torch.equal(task_data("rotated")[0][5, 0].rot90(-1), images[5])
    shuffled = task_data(POOL[0])[0]
    assert torch.equal(shuffled[3].flatten().sort().values, images[3].flatten().sort().values)
    assert not torch.equal(shuffled, task_data(POOL[1])[0])
    assert len(TASKS) >= 8
    assert len(TASKS) + len(POOL) >= 20


def test_no_test_image_is_trained_or_validated_on(tmp_path: Path) -> None:
    domain = VisionDomain(Store(tmp_path))
    parts = {
        part: torch.cat(
            [batch.inputs["pixel_values"].flatten(1) for batch in domain.batches("parity", 1, part, 450, 64)]
        )
        for part in ("train", "validation", "test")
    }
    rows = {part: {tuple(row.tolist()) for row in found} for part, found in parts.items()}
    assert not rows["train"] & rows["validation"]
    assert not rows["test"] & (rows["train"] | rows["validation"])


def test_the_command_measures_stops_in_time_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra bench")
    command = ["--domain", "vision", "--quick", "--json", "--cache", str(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--seconds", "0"])
    assert stopped.value.code == UNFINISHED
    assert json.loads(capsys.readouterr().out)["rows"] == []
    main([*command, "--plots", str(tmp_path / "plots")])
    first = capsys.readouterr()
    document = json.loads(first.out)
    assert document["domain"] == "vision"
    assert [line["row"] for line in document["rows"]] == ["individual"] + ["pretrained"] * 3 + ["task arithmetic"] * 3
    assert document["rows"][0]["normalized"] == {"mean": 1.0, "spread": 0.0}
    assert {line["expert"]["kind"] for line in document["rows"] if line["expert"]} == {"data-free", "calibrated"}
    assert 0 < document["rows"][2]["share_of_backbone"] < 0.2
    assert (tmp_path / "plots" / "quality-vision.png").stat().st_size > 1000
    main(command)
    again = capsys.readouterr()
    assert json.loads(again.out) == document
    assert again.err == ""
