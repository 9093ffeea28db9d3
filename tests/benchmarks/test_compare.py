import json
import sys

import pytest

from benchmarks.compare import main


def write(path, **figures: list[float]) -> str:
    path.write_text(json.dumps({"figures": figures}))
    return str(path)


def test_it_prints_what_moved(tmp_path, monkeypatch, capsys):
    before = write(tmp_path / "a.json", step=[10.0, 11.0], other=[1.0, 1.0], gone=[1.0])
    after = write(tmp_path / "b.json", step=[20.0, 22.0], other=[1.0, 1.0])
    monkeypatch.setattr(sys, "argv", ["compare", before, after])
    main()
    out = capsys.readouterr().out
    assert "+100.0%" in out
    assert "1 of 2 figures moved" in out
    assert "1 figures are in one file only, as gone" in out
    monkeypatch.setattr(sys, "argv", ["compare", before, after, "--json"])
    main()
    assert [change["name"] for change in json.loads(capsys.readouterr().out)["changes"]] == ["step", "other"]


def test_a_wrong_file_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path / "x"), str(tmp_path / "y")])
    with pytest.raises(SystemExit, match="error: .*x is not a file that"):
        main()
