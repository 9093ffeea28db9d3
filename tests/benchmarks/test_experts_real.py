import json
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.experts_real import Row, main, routes, table
from benchmarks.quality.domain import Requests
from benchmarks.zoo.real.fidelity import Divergence
from serve.demo.zoo.real.task import Content, RealTask
from serve.demo.zoo.real.tasks import TASKS
from serve.demo.zoo.task import Example
from tests.merge.tiny import save_fine_tune, save_tiny


def test_the_table_has_averages_over_the_tasks() -> None:
    common = {"kind": "lora", "backbone": "base", "form": "auto", "prompts": False, "alone": 0.1, "divergence": None}
    rows = [
        Row(task="a", budget=1.0, bytes=0.9, accuracy=0.9, fine_tune=1.0, **common),  # type: ignore[arg-type]
        Row(task="b", budget=1.0, bytes=1.0, accuracy=0.5, fine_tune=0.6, **common),  # type: ignore[arg-type]
        Row(task="b", budget=0.5, bytes=0.5, accuracy=0.3, fine_tune=0.6, **common),  # type: ignore[arg-type]
    ]
    half, whole = table(rows)
    assert (half["budget"], half["share"]) == (0.5, 0.5)
    assert (whole["accuracy"], whole["fine_tune"], whole["share"], whole["bytes"]) == (0.7, 0.8, 0.875, 0.95)


def test_the_table_tells_storages_apart() -> None:
    common = {"kind": "lora", "backbone": "base", "form": "auto", "prompts": False, "alone": 0.1, "divergence": None,
              "budget": 1.0, "bytes": 1.0, "fine_tune": 1.0, "storage": "int4"}  # fmt: skip
    rows = [
        Row(task="a", accuracy=0.9, cut_against="int4", kl=Divergence(0.1, 0.4), **common),  # type: ignore[arg-type]
        Row(task="b", accuracy=0.7, cut_against="int4", kl=Divergence(0.3, 0.8), **common),  # type: ignore[arg-type]
        Row(task="a", accuracy=0.5, cut_against="bf16", kl=Divergence(0.5, 0.9), **common),  # type: ignore[arg-type]
    ]
    without, against = table(rows)
    assert (without["cut_against"], without["share"], without["kl"], without["kl_99"]) == ("bf16", 0.5, 0.5, 0.9)
    assert (against["cut_against"], against["share"], against["kl"], against["kl_99"]) == ("int4", 0.8, 0.2, 0.6)


def test_bad_arguments_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--forms", "dense"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


TASK = RealTask(
    name="tiny", title="Anything", kind="text", metric="exact", longest=3, phrasings=("{x}.",), held_out_phrasings=(),
    contents=lambda _: [Content(text, text) for text in ("ab", "cd", "ef")],
)  # fmt: skip


@pytest.fixture
def fine_tunes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the full fine-tune of the only task, and its base taken for the real one."""
    base = save_tiny(tmp_path / "base")
    (base / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    save_fine_tune(base, tmp_path / "full" / "tiny", 1, 0.3)
    monkeypatch.setattr("benchmarks.zoo.real.bench.TASKS", (TASK,))
    monkeypatch.setattr("benchmarks.zoo.real.bench.find_task", lambda _: TASK)
    monkeypatch.setattr("benchmarks.zoo.real.fidelity.find_task", lambda _: TASK)
    monkeypatch.setattr("benchmarks.experts_real.base_dir", lambda: base)
    return tmp_path / "full"


def test_a_run_over_tiny_models_has_a_row_for_every_cell(fine_tunes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([
        "--kinds", "full", "--full", str(fine_tunes), "--forms", "low_rank", "--budgets", "20",
        "--requests", "2", "--calibration", "2", "--distill", "1", "--quiet", "--json",
    ])  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    cells = {(row["backbone"], row["prompts"]) for row in found["rows"]}
    assert cells == {("base", False), ("base", True), ("linear", False), ("linear", True)}
    assert all(0 < row["bytes"] <= 21 for row in found["rows"])
    assert [row["divergence"] is not None for row in found["rows"]] == [row["prompts"] for row in found["rows"]]
    assert len(found["summary"]) == 4


def test_an_expert_that_its_budget_cannot_hold_is_named_and_the_run_goes_on(
    fine_tunes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([
        "--kinds", "full", "--full", str(fine_tunes), "--forms", "sparse", "--budgets", "0.1", "20", "--backbones",
        "base", "--prompts", "without", "--requests", "2", "--json",
    ])  # fmt: skip
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert [(row["form"], row["budget"]) for row in found["rows"]] == [("sparse", 20.0)]
    assert [(row["form"], row["budget"]) for row in found["refused"]] == [("sparse", 0.1)]
    assert "set a larger budget" in found["refused"][0]["why"]
    assert "sparse 0.1 %: experts.budget leaves" in printed.err


def test_over_rounded_backbones_experts_are_cut_against_both(
    fine_tunes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("merge.check.general.LEAST_KNOWN", 0)
    main([
        "--kinds", "full", "--full", str(fine_tunes), "--forms", "low_rank", "--budgets", "20", "--backbones", "linear",
        "--prompts", "without", "--requests", "2", "--storage", "bf16", "int4", "--quiet", "--json",
    ])  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert [(row["storage"], row["cut_against"]) for row in found["rows"]] == [
        ("bf16", "bf16"), ("int4", "bf16"), ("int4", "int4"),
    ]  # fmt: skip
    plain, without, against = (row["kl"] for row in found["rows"])
    assert plain["mean"] < against["mean"] < without["mean"]
    assert all(kl["mean"] <= kl["p99"] for kl in (plain, without, against))
    (general,) = found["rounded"]
    assert (general["backbone"], general["storage"]) == ("linear", "int4")
    assert general["divergence"] > 0
    assert general["perplexity_ratio"] != 1


def test_with_prompts_four_bits_are_fitted_to_them(
    fine_tunes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("merge.check.general.LEAST_KNOWN", 0)
    main([
        "--kinds", "full", "--full", str(fine_tunes), "--forms", "low_rank", "--budgets", "20", "--backbones", "base",
        "--prompts", "both", "--requests", "2", "--calibration", "2", "--distill", "0", "--storage", "int4", "--quiet",
        "--json",
    ])  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert [(row["prompts"], row["cut_against"]) for row in found["rows"]] == [(False, "int4"), (True, "int4")]
    plain, fitted = found["rounded"]
    assert (plain["prompts"], fitted["prompts"]) == (False, True)
    assert fitted["divergence"] < plain["divergence"]


def test_routed_accuracy_counts_the_requests_that_reach_their_expert(
    fine_tunes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.experts_real.routes", lambda *_: {"tiny": [True, False]})
    monkeypatch.setattr("benchmarks.zoo.real.bench.marks", lambda *_: [0.5, 1.0])
    main([
        "--kinds", "full", "--full", str(fine_tunes), "--forms", "low_rank", "--budgets", "20", "--backbones", "base",
        "--prompts", "without", "--requests", "2", "--routed", "--quiet", "--json",
    ])  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    (row,) = found["rows"]
    assert (row["accuracy"], row["routed"], found["summary"][0]["routed"]) == (0.75, 0.25, 0.25)


class _Chosen(NamedTuple):
    chosen: dict[str, list[str]]


def test_routes_are_right_where_a_request_goes_to_its_own_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked:
        def requests(self, task: str, part: str = "test", count: int | None = None) -> list[Example]:
            return [Example(f"{task} {part} {number}", "") for number in range(count or 3)]

    def routed(requests: Requests) -> _Chosen:
        assert set(requests.train) == {task.name for task in TASKS}
        assert requests.test == {"sql": ["sql test 0", "sql test 1", "sql test 2"]}
        return _Chosen({"sql": ["sql", "", "dates"]})

    monkeypatch.setattr("benchmarks.experts_real.routed", routed)
    assert routes(Asked(), ["sql"]) == {"sql": [True, False, False]}  # type: ignore[arg-type]
