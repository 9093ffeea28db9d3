import json
from dataclasses import replace
from pathlib import Path

import pytest

from merge import run as merging
from merge.run import ExpertReport, MergeReport
from serve.cli import main

REPORT = MergeReport(
    bundle=Path("out"),
    seconds=12.34,
    backbone_bytes=1_000_000,
    stored_bytes=1_000_800,
    experts=(ExpertReport("sql", nnz=5, bytes=20_000, density=0.01, share=0.02, divergence=(0.5, 0.01)),),
    router=True,
    notes=("a note",),
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What the merger is asked for."""
    seen: list[tuple] = []

    def merge_recipe(recipe: Path, out: Path, **options: object) -> MergeReport:
        seen.append((recipe, out, options))
        return REPORT

    monkeypatch.setattr(merging, "merge_recipe", merge_recipe)
    return seen


def test_a_merge_says_what_it_wrote(calls: list[tuple], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["merge", "recipe.yml", "out", "--overwrite", "--no-progress", "--resume"])
    assert ended.value.code == 0
    assert calls == [
        (
            Path("recipe.yml"),
            Path("out"),
            {"overwrite": True, "progress": False, "workers": None, "resume": True, "ray": False, "device": "auto"},
        )
    ]
    assert capsys.readouterr().out.splitlines() == [
        "out: backbone 1,000,800 bytes, 1 expert, a router, in 12.3 s",
        "  sql: 20,000 bytes (2.0% of the backbone's)",
        "  note: a note",
    ]


def test_a_quantised_backbone_has_two_sizes(
    calls: list[tuple], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(merging, "merge_recipe", lambda *_, **__: replace(REPORT, stored_bytes=600_000))
    with pytest.raises(SystemExit):
        main(["merge", "recipe.yml", "out", "--no-progress"])
    first, expert, _ = capsys.readouterr().out.splitlines()
    assert first == "out: backbone 600,000 bytes (1,000,000 unquantised), 1 expert, a router, in 12.3 s"
    assert expert == "  sql: 20,000 bytes (2.0% of the backbone's, unquantised)"


def test_json_is_the_only_thing_on_stdout(calls: list[tuple], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["merge", "recipe.yml", "out", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (document["bundle"], document["experts"][0]["name"]) == ("out", "sql")
    assert calls == [
        (
            Path("recipe.yml"),
            Path("out"),
            {"overwrite": False, "progress": True, "workers": None, "resume": False, "ray": False, "device": "auto"},
        )
    ]
