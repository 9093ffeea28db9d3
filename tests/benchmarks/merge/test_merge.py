import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from benchmarks.merge import __main__ as command
from benchmarks.merge import compare
from benchmarks.merge.child import run
from benchmarks.merge.memory import resident_mb
from benchmarks.merge.pool import DISTINCT, FULL, Size, lora_name, model_name, write_loras, write_pool
from benchmarks.merge.shape import SHAPES, TASKS, estimates, parameter_shapes, write_recipe
from benchmarks.merge.whole import run as run_whole
from merge.checkpoint import open_checkpoint
from merge.lora import open_adapter

TINY = Size(64, 96, 2, 80)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    write_pool(folder, TINY, 3, torch.bfloat16)
    return folder


def test_a_pool_is_of_whole_models_that_differ(pool: Path) -> None:
    base, first, second = (open_checkpoint(pool / name) for name in ("base", model_name(0), model_name(1)))
    assert sum(tensor.nbytes for tensor in base.tensors.values()) == 2 * TINY.parameters
    assert len({path.stat().st_ino for path in pool.rglob("model.safetensors")}) == 4
    name = "model.layers.1.mlp.down_proj.weight"
    steps = [model.tensor(name, torch.float32) - base.tensor(name, torch.float32) for model in (first, second)]
    assert 0.05 < float(steps[0].norm() / base.tensor(name).float().norm()) < 0.2
    assert not torch.equal(steps[0], steps[1])
    assert AutoModelForCausalLM.from_pretrained(pool / model_name(2)).num_parameters() == TINY.parameters


def test_models_beyond_the_distinct_ones_cost_no_disk(tmp_path: Path) -> None:
    write_pool(tmp_path, TINY, DISTINCT + 1, torch.bfloat16)
    first, again = (tmp_path / model_name(i) / "model.safetensors" for i in (0, DISTINCT))
    assert again.samefile(first)
    before = first.stat().st_mtime_ns
    write_pool(tmp_path, TINY, DISTINCT + 1, torch.bfloat16)
    assert first.stat().st_mtime_ns == before


def test_the_full_size_has_a_hundred_million_parameters() -> None:
    assert FULL.parameters >= 100_000_000


@pytest.mark.parametrize("method", ["task_arithmetic", "frank_wolfe_hard", "frank_wolfe_soft"])
def test_a_child_merges_and_measures(pool: Path, tmp_path: Path, method: str) -> None:
    result = run(pool, method, 2, tmp_path, torch.float32, {})
    assert result["peak_rss_mb"] >= result["start_rss_mb"] > 0
    assert result["seconds"] > 0
    merged, base = open_checkpoint(tmp_path), open_checkpoint(pool / "base")
    assert any(not torch.equal(merged.tensor(name), base.tensor(name, torch.float32)) for name in base.tensors)


def test_peak_memory_counts_a_mapped_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"1" * (64 << 20))
    before = resident_mb("VmRSS")
    mapped = torch.from_file(str(file), shared=True, size=64 << 20, dtype=torch.uint8)
    assert int(mapped[::512].sum()) > 0
    assert resident_mb("VmRSS") > before + 60
    assert resident_mb("VmHWM") >= resident_mb("VmRSS") - 1


def test_the_command_reports_every_pool(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "QUICK", TINY)

    def fake(_folder: Path, method: str, count: int, out: Path, *_: object) -> dict[str, float]:
        assert out.is_dir()
        return {"seconds": 1.0, "peak_rss_mb": 100.0 + count, "start_rss_mb": 90.0}

    monkeypatch.setattr(command, "merge_once", fake)
    arguments = ["merge", "--quick", "--json", "--methods", "ties", "linear", "--dir", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    command.main()
    result = json.loads(capsys.readouterr().out)
    assert list(result["methods"]) == ["ties", "linear"]
    assert result["methods"]["ties"]["rss_ratio_8_to_2"] == pytest.approx(108 / 102)
    assert result["methods"]["ties"]["seconds"] == {"2": 1.0, "4": 1.0, "8": 1.0}
    assert result["disk_read_gbps"] > 0
    # A folder that was named keeps its models for the next run, and nothing else.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", *(model_name(i) for i in range(8))]


def test_the_difference_between_two_checkpoints(pool: Path) -> None:
    same, other = open_checkpoint(pool / model_name(0)), open_checkpoint(pool / model_name(1))
    assert compare.difference(same, same)["max_abs_difference"] == 0
    apart = compare.difference(same, other)
    assert apart["entries"] == TINY.parameters
    assert 0 < apart["entries_over_tolerance"] <= apart["entries"]


def test_the_comparison_takes_medians_of_both(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "prepare", lambda _say: Path("python"))
    seconds = iter([2.0, 9.0, 1.0, 6.0, 3.0, 8.0])

    def merged(out: Path) -> dict[str, float]:
        out.mkdir(exist_ok=True)
        for file in (pool / model_name(0)).iterdir():
            (out / file.name).write_bytes(file.read_bytes())
        return {"seconds": next(seconds), "processor_seconds": 1.0, "peak_rss_mb": 5.0}

    monkeypatch.setattr(compare, "merge_once", lambda _folder, _method, _count, out, *_: merged(out))
    monkeypatch.setattr(compare, "_mergekit", lambda _python, _recipe, out: merged(out))
    told: list[str] = []
    result = compare.compare(pool, 2, 3, ["ties"], told.append)["methods"]
    assert list(result) == ["ties"]
    assert (result["ties"]["overtone"]["seconds"], result["ties"]["mergekit"]["seconds"]) == (2.0, 8.0)
    assert result["ties"]["speedup"] == 4.0
    assert result["ties"]["max_abs_difference"] == 0
    assert len(told) == 6


def test_the_recipe_that_mergekit_gets(pool: Path, tmp_path: Path) -> None:
    document = yaml.safe_load(compare._recipe(tmp_path, pool, "ties", 2, compare.SAME["ties"]).read_text())
    assert document["parameters"] == {"normalize": True, "lambda": 1.0}
    assert [model["parameters"] for model in document["models"]] == [{"weight": 1.0, "density": 0.2}] * 2
    assert document["dtype"] == "float32"
    loras = yaml.safe_load(compare._recipe(tmp_path, pool, "ties", 2, compare.SAME["ties"], loras=True).read_text())
    assert loras["models"][1]["model"] == f"{pool / 'base'}+{pool / lora_name(1)}"


def test_loras_of_a_pool_are_merged(pool: Path, tmp_path: Path) -> None:
    write_loras(pool, 2)
    out = tmp_path / "out"
    out.mkdir()
    result = run(pool, "task_arithmetic", 2, out, torch.float32, {"weight": 0.3}, loras=True)
    assert result["processor_seconds"] > 0
    base, merged, name = open_checkpoint(pool / "base"), open_checkpoint(out), "model.layers.1.mlp.up_proj.weight"
    want = base.tensor(name, torch.float32)
    for number in range(2):
        tuned = open_adapter(pool / lora_name(number), base).tensor(name, torch.float32)
        want = want + 0.3 * (tuned - base.tensor(name, torch.float32))
    torch.testing.assert_close(merged.tensor(name), want, rtol=0, atol=1e-5)


SMALL = {**SHAPES["llama-3.1-8b"], "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1} | {
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128,
}  # fmt: skip


def test_the_shape_has_eight_billion_parameters() -> None:
    shapes = parameter_shapes(SHAPES["llama-3.1-8b"])
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 8_030_261_248


def test_a_merge_of_a_shape_measures_each_stage(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, SMALL, "task_arithmetic", 0, {"budget": 0.2})
    result = run_whole(recipe, tmp_path / "bundle", 1)
    stages = result["stages"]
    assert isinstance(stages, dict)
    assert list(stages) == ["inputs", "backbone", "experts", "router", "bundle"]
    for field in ("seconds", "processor_seconds"):
        assert sum(stage[field] for stage in stages.values()) <= result[field]  # type: ignore[operator]
    assert sorted(path.stem for path in (tmp_path / "bundle" / "experts").iterdir()) == sorted(TASKS)
    assert write_recipe(tmp_path, SMALL, "base", 0, {}) == recipe  # what is there is kept


def test_estimates_are_of_the_whole_shape() -> None:
    found = estimates(SHAPES["llama-3.1-8b"])
    assert found["model_mb"] == pytest.approx(2 * 8030.261248)
    assert found["data_free_mb"] < found["data_free_full_fine_tunes_mb"] < 6000 < found["calibrated_mb"] < 24_000
