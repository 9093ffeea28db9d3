import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benchmarks.quality.__main__ import main
from benchmarks.quality.chat import table as table_module
from benchmarks.quality.chat.command import BACKBONES
from benchmarks.zoo.real import bench
from merge.check.general import GeneralAbility
from merge.checkpoint import Checkpoint
from merge.methods import METHODS
from serve.demo.zoo.real.task import Content, RealTask
from tests.merge.tiny import save_fine_tune, save_tiny

WORDS = ("ab", "cd", "ef", "gh", "ij", "kl", "mn", "op")


def make_task(name: str) -> RealTask:
    """A task that even random models do some of."""
    return RealTask(
        name=name, title=name, kind="text", metric="regex", longest=3, phrasings=(f"{name} {{x}}.",),
        held_out_phrasings=(), contents=lambda _: [Content(text, "[a-p]") for text in WORDS],
    )  # fmt: skip


TASKS = (make_task("turn"), make_task("count"))


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two full fine-tunes of a tiny base, which knows nothing in general."""
    base = save_tiny(tmp_path / "base")
    (base / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    for seed, task in enumerate(TASKS):
        save_fine_tune(base, tmp_path / "full" / task.name, seed, 0.3)
    monkeypatch.setattr("benchmarks.zoo.real.bench.TASKS", TASKS)
    monkeypatch.setattr("benchmarks.zoo.real.bench.find_task", {task.name: task for task in TASKS}.__getitem__)
    monkeypatch.setattr("benchmarks.quality.chat.command.base_dir", lambda: base)
    return tmp_path


@dataclass
class Reference:
    """Compares no models: KL to the base is 0.05 for the first `keeps` of those that are asked, then 0.5."""

    keeps: int = 1
    asked: list[Path] = field(default_factory=list)

    def compare(self, model: Checkpoint) -> GeneralAbility:
        self.asked.append(model.path)
        return GeneralAbility(0.05 if len(self.asked) <= self.keeps else 0.5, 1.0, 1.01, 50, 40, None)


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Reference:
    """What the models are compared with on general questions."""
    made = Reference()
    monkeypatch.setattr(table_module, "general_reference", lambda _: made)
    return made


def run(zoo: Path, *more: str) -> None:
    main([
        "--domain", "chat", "--models", str(zoo), "--cache", str(zoo / "cache"), "--kinds", "full", "--pools", "4",
        "--limit", "2", "--calibration", "2", "--distill", "1", "--budgets", "20", "--forms", "low_rank",
        "--quiet", *more,
    ])  # fmt: skip


def _never(*arguments: object) -> None:
    raise AssertionError(f"{arguments} is run again")


def test_cells_are_measured_once_and_put_together(
    zoo: Path, reference: Reference, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(zoo, "--backbones", "base", "task_arithmetic", "--json")
    document = json.loads(capsys.readouterr().out)
    (pool,) = document["pools"]
    assert (pool["kind"], pool["pool"]) == ("full", ["turn", "count"])
    assert pool["router"][0]["accuracy"] == 1
    base, sums = pool["rows"]
    assert (base["row"], base["lambda"], sums["lambda"]) == ("base", [1.0], [0.1])
    assert base["general"] == {"divergence": 0.0, "kept": 1.0, "perplexity_ratio": 1.0}
    assert sums["general"] == {"divergence": 0.05, "kept": 1.0, "perplexity_ratio": 1.01}
    for row in pool["rows"]:
        assert [cut["prompts"] for cut in row["experts"]] == [False, True]
        for cut in row["experts"]:
            assert 0 < cut["bytes"] <= 0.21
            assert (cut["divergence"] is None) == (not cut["prompts"])
            assert set(cut["oracle"]["tasks"]) == {"turn", "count"}
            assert cut["routed"]["average"] == cut["oracle"]["average"]  # every request went to its own expert
    assert len(reference.asked) == 2  # λ 0.1, and 0.2 that loses too much: 0.3 and 0.5 are not tried
    monkeypatch.setattr(bench.Bench, "marks", _never)
    run(zoo, "--backbones", "base", "task_arithmetic", "--prompts", "with", "--tasks", "turn")
    assert len(reference.asked) == 2
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("full, 2 fine-tunes: turn, count; the fine-tunes score ")
    assert [line.split(" | ")[0] for line in table[4:]] == ["| base", "| task arithmetic"]
    assert "low_rank 20 %, with prompts" in table[2]


@pytest.mark.parametrize(("halvings", "scale"), [(0, 0.1), (2, 0.025)])
def test_a_scale_that_loses_too_much_is_halved(
    zoo: Path, reference: Reference, capsys: pytest.CaptureFixture[str], halvings: int, scale: float
) -> None:
    reference.keeps = 0
    run(zoo, "--backbones", "task_arithmetic", "--forms", "--halvings", str(halvings), "--json")
    (pool,) = json.loads(capsys.readouterr().out)["pools"]
    assert pool["rows"][0]["lambda"] == [pytest.approx(scale)]


def test_other_fine_tunes_are_merged_and_not_scored(
    zoo: Path, reference: Reference, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--backbones", "average", "--forms", "--json")
    run(zoo, *options)
    (alone,) = json.loads(capsys.readouterr().out)["pools"]
    other = save_fine_tune(zoo / "base", zoo / "other", 5, 0.3)
    run(zoo, *options, "--also", str(other))
    (pool,) = json.loads(capsys.readouterr().out)["pools"]
    assert (pool["pool"], pool["tasks"]) == (["turn", "count", "also 1"], ["turn", "count"])
    assert pool["fine_tunes"] == alone["fine_tunes"]
    assert len(set(reference.asked)) == 2  # another average


def test_a_missing_other_fine_tune_is_named(zoo: Path) -> None:
    with pytest.raises(SystemExit, match="error: --also: .*nowhere"):
        run(zoo, "--also", str(zoo / "nowhere"))


def test_what_is_finished_is_shown_when_the_time_is_over(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(zoo, "--seconds", "0")
    assert ended.value.code == 3
    out, err = capsys.readouterr()
    assert "nothing is finished" in out
    assert "run the command again" in err


def test_a_folder_without_fine_tunes_is_named(zoo: Path) -> None:
    with pytest.raises(SystemExit, match="error: no fine-tunes in .*lora"):
        run(zoo, "--kinds", "lora")


def test_every_row_is_a_method_with_parameters_it_takes() -> None:
    for row in BACKBONES.values():
        if row.method not in (None, "frank_wolfe"):
            parameters = {**row.parameters, **({"exclude": ("x*",)} if row.spatial else {})}
            METHODS[row.method].parameters.model_validate(parameters)
