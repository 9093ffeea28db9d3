import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from merge.backbone import write_backbone
from merge.bundle import backbone_digest
from merge.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from merge.lora import open_adapter
from merge.methods import METHODS, find_method
from merge.methods.dare import keep_mask
from merge.methods.vectors import TaskVectors, row_blocks
from tests.merge.lora.adapters import Q, factors, write_adapter
from tests.merge.tiny import save_fine_tune, save_tiny


def merge(out: Path, base: Path, tunes: dict[str, Path], name: str = "task_arithmetic", **more: object) -> Checkpoint:
    out.mkdir()
    method = find_method(name)
    dtype = more.pop("dtype", torch.float32)
    out_dtype = more.pop("out_dtype", None)
    assert isinstance(dtype, torch.dtype)
    write_backbone(
        out, open_checkpoint(base), {task: open_checkpoint(path) for task, path in tunes.items()},
        method.bind(method.parameters.model_validate(more), {}), dtype, out_dtype,  # type: ignore[arg-type]
    )  # fmt: skip
    return open_checkpoint(out)


def test_streaming_equals_the_whole_models_arithmetic(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", tied=False, shard="10KB")
    tunes = {name: save_fine_tune(base, tmp_path / name, seed) for seed, name in enumerate("ab")}
    merged = merge(tmp_path / "out", base, tunes, weight=0.5)
    whole = {name: LlamaForCausalLM.from_pretrained(path).state_dict() for name, path in {**tunes, "0": base}.items()}
    for name, origin in whole["0"].items():
        expected = origin + 0.5 * (whole["a"][name] - origin) + 0.5 * (whole["b"][name] - origin)
        torch.testing.assert_close(merged.tensor(name), expected, rtol=0, atol=1e-6)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(loaded[name], merged.tensor(name)) for name in loaded)


def test_neither_order_nor_shards_move_a_byte(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", dtype=torch.bfloat16)
    tunes = {name: save_fine_tune(base, tmp_path / name, seed) for seed, name in enumerate("abc")}
    again = LlamaForCausalLM.from_pretrained(tunes["b"])
    again.save_pretrained(tmp_path / "b-sharded", max_shard_size="10KB")
    one = merge(tmp_path / "one", base, tunes, "fr")
    other = {"c": tunes["c"], "b": tmp_path / "b-sharded", "a": tunes["a"]}
    two = merge(tmp_path / "two", base, other, "fr")
    assert backbone_digest(one.path) == backbone_digest(two.path)


@pytest.mark.parametrize("name", ["iso_c", "tsv_m"])
def test_loras_are_merged_in_their_own_space(tmp_path: Path, name: str) -> None:
    base = open_checkpoint(save_tiny(tmp_path / "base", dtype=torch.bfloat16))
    tunes = {
        task: open_adapter(write_adapter(tmp_path / task, factors(Q, 32, 32, seed=seed)), base)
        for seed, task in enumerate("ab")
    }
    merged, again = tmp_path / "merged", tmp_path / "again"
    method = find_method(name).bind(find_method(name).parameters(), {})
    # From another copy of the base an adapter is a full checkpoint, whose difference holds rounding errors.
    copy = Checkpoint(tmp_path, base.config, base.tensors)
    whole = {task: replace(tune, model=copy) for task, tune in tunes.items()}
    for folder, models in ((merged, tunes), (again, whole)):
        folder.mkdir()
        write_backbone(folder, base, models, method, out_dtype=torch.float32)
    weight = f"{Q}.weight"
    change, other = (
        open_checkpoint(folder).tensor(weight) - base.tensor(weight, torch.float32) for folder in (merged, again)
    )
    s = torch.linalg.svdvals(change)
    assert int((s > 1e-5 * s[0]).sum()) == 8
    torch.testing.assert_close(other, change, rtol=0, atol=1e-4)
    unchanged = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(open_checkpoint(merged).tensor(unchanged), base.tensor(unchanged, torch.float32))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """A base and three fine-tunes, large enough that torch would split sums and products over threads."""
    folder = tmp_path_factory.mktemp("pool")
    generator = torch.Generator().manual_seed(0)
    origin = {"embed.weight": torch.randn(700, 300, generator=generator)}
    origin |= {f"layer{i}.weight": torch.randn(260, 330, generator=generator) for i in range(3)}
    origin["norm.weight"] = torch.randn(40_000, generator=generator)
    for name in ("base", "a", "b", "c"):
        tensors = {
            key: tensor if name == "base" else tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
            for key, tensor in origin.items()
        }
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
        save_file(tensors, folder / name / "model.safetensors")
    return {name: open_checkpoint(folder / name) for name in ("base", "a", "b", "c")}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_neither_threads_nor_order_nor_shard_size_move_a_bit(
    pool: dict[str, Checkpoint], tmp_path: Path, name: str
) -> None:
    method = find_method(name)
    more = {"coefficients": "align"} if name == "fr" else {}
    bound = method.bind(method.parameters.model_validate(more), {})
    before = torch.get_num_threads()
    results = []
    try:
        for threads, order, shard in ((1, "abc", 1 << 40), (2, "cab", 1 << 40), (5, "bca", 400_000)):
            torch.set_num_threads(threads)
            out = tmp_path / str(threads)
            out.mkdir()
            tunes = {task: pool[task] for task in order if task != "c" or name != "nuslerp"}
            write_backbone(out, pool["base"], tunes, bound, shard_bytes=shard, threads=threads)
            assert torch.get_num_threads() == threads
            results.append(out)
    finally:
        torch.set_num_threads(before)
    assert len(list(results[2].glob("*.safetensors"))) > 1
    first, *others = (
        {key: tensor for file in out.glob("*.safetensors") for key, tensor in load_file(file).items()}
        for out in results
    )
    for other in others:
        assert set(other) == set(first)
        assert all(torch.equal(other[key], first[key]) for key in first)


ROWWISE = sorted(name for name, method in METHODS.items() if method.by_rows("lm_head.weight", method.parameters()))


@pytest.mark.parametrize("name", ROWWISE)
def test_rows_of_large_tensors_are_merged_some_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    base = open_checkpoint(save_tiny(tmp_path / "base", tied=False))
    tunes: dict[str, Checkpoint] = {
        "a": open_checkpoint(save_fine_tune(base.path, tmp_path / "a", 1)),
        "b": open_adapter(write_adapter(tmp_path / "b", factors(Q, 32, 32)), base),
    }
    method = find_method(name)
    given = {"density": 1.0} if name.startswith(("dare", "della")) else {}
    parameters = method.parameters.model_validate(given)
    bound = method.bind(parameters, {})
    seen: list[torch.Size] = []

    def watched(tensor: str, origin: torch.Tensor, vectors: TaskVectors) -> torch.Tensor:
        seen.append(origin.shape)
        return bound(tensor, origin, vectors)

    (tmp_path / "whole").mkdir()
    (tmp_path / "rows").mkdir()
    write_backbone(tmp_path / "whole", base, tunes, bound)
    monkeypatch.setattr("merge.backbone.row_blocks", partial(row_blocks, most=500))
    by_rows = lambda tensor: method.by_rows(tensor, parameters)
    write_backbone(tmp_path / "rows", base, tunes, watched, by_rows=by_rows)
    head = base.tensors["lm_head.weight"].shape
    assert head not in seen
    whole, rows = open_checkpoint(tmp_path / "whole"), open_checkpoint(tmp_path / "rows")
    for tensor in base.tensors:
        torch.testing.assert_close(rows.tensor(tensor), whole.tensor(tensor), rtol=0, atol=1e-6)


def test_a_tensor_that_no_lora_changes_is_never_whole_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = open_checkpoint(save_tiny(tmp_path / "base", tied=False))
    tunes = {"b": open_adapter(write_adapter(tmp_path / "b", factors(Q, 32, 32)), base)}
    method = find_method("ties")
    bound = method.bind(method.parameters(), {})
    seen: dict[str, list[int]] = {}

    def watched(tensor: str, origin: torch.Tensor, vectors: TaskVectors) -> torch.Tensor:
        seen.setdefault(tensor, []).append(len(origin))
        return bound(tensor, origin, vectors)

    (tmp_path / "out").mkdir()
    monkeypatch.setattr("merge.backbone.row_blocks", partial(row_blocks, most=320))
    write_backbone(tmp_path / "out", base, tunes, watched)
    assert set(seen["lm_head.weight"]) <= {10, base.tensors["lm_head.weight"].shape[0] % 10}
    assert seen[f"{Q}.weight"] == [32]
    merged = open_checkpoint(tmp_path / "out")
    assert torch.equal(merged.tensor("lm_head.weight"), base.tensor("lm_head.weight"))


def test_dare_draws_other_masks_for_other_rows() -> None:
    assert not torch.equal(keep_mask((4, 50), 0.5, 0, "a", "w"), keep_mask((4, 50), 0.5, 0, "a", "w", first_row=4))
    assert torch.equal(keep_mask((4, 50), 0.5, 0, "a", "w"), keep_mask((4, 50), 0.5, 0, "a", "w", first_row=0))


def test_what_is_not_merged_is_copied(pool: dict[str, Checkpoint], tmp_path: Path) -> None:
    method = find_method("task_arithmetic")
    bound = method.bind(method.parameters.model_validate({}), {})
    write_backbone(tmp_path, pool["base"], {"a": pool["a"]}, bound, out_dtype=torch.bfloat16, merged=["layer0.weight"])
    merged = load_file(tmp_path / "model.safetensors")
    assert {key for key, tensor in merged.items() if tensor.dtype == torch.bfloat16} == {"layer0.weight"}
    assert torch.equal(merged["embed.weight"], pool["base"].tensor("embed.weight"))


def test_one_fine_tune_with_weight_one_is_itself(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    tune = save_fine_tune(base, tmp_path / "a", 1)
    merged = merge(tmp_path / "out", base, {"a": tune}, weight=1.0, dtype=torch.float64)
    ours, theirs = merged, open_checkpoint(tune)
    assert all(torch.equal(ours.tensor(name), theirs.tensor(name)) for name in theirs.tensors)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_config_says_the_stored_dtype(tmp_path: Path, key: str) -> None:
    base = save_tiny(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config.pop("dtype", None)
    (base / "config.json").write_text(json.dumps({**config, key: "float32"}))
    merged = merge(tmp_path / "out", base, {"a": base}, out_dtype=torch.bfloat16)
    assert {info.dtype for info in merged.tensors.values()} == {torch.bfloat16}
    assert merged.config[key] == "bfloat16"
    assert (merged.path / "tokenizer.json").is_file()


@pytest.mark.parametrize("name", ["task_arithmetic", "linear", "ties"])
def test_a_broken_input_is_named_and_nothing_is_left(tmp_path: Path, name: str) -> None:
    base = save_tiny(tmp_path / "base")
    tune = save_fine_tune(base, tmp_path / "broken", 1)
    tensors = load_file(tune / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, tune / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"broken.*model\.norm\.weight holds 1 NaN"):
        merge(tmp_path / "out", base, {"a": tune}, name)
    assert not list((tmp_path / "out").iterdir())
