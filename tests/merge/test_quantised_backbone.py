import json
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from kernels.expert_linear import PackedWeight
from merge.bundle import open_bundle
from merge.bundle.quantised import QuantisedWeight, is_embedding, quantise, scheme_of
from merge.check import CheckError
from merge.checkpoint import Checkpoint, open_checkpoint
from merge.experts import Prompts
from merge.experts.calibration import continue_greedily
from merge.experts.running import assign, build_model
from merge.export import export_dense
from merge.quantised_backbone import fitted_to_inputs, write_quantised
from merge.recipe import load_recipe
from merge.run import merge_recipe
from serve.model import load_model
from tests.merge.tiny import save_fine_tune, save_tiny


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("inputs")
    base = save_tiny(root / "base", dtype=torch.bfloat16)
    for seed, name in enumerate(("one", "two")):
        save_fine_tune(base, root / name, seed, size=0.3)
    return root


def recipe(inputs: Path, name: str, **changes: object) -> Path:
    document = {
        "name": "tiny",
        "base_model": "base",
        "merge_method": "task_arithmetic",
        "models": [{"model": "one"}, {"model": "two"}],
        "experts": {"form": "sparse", "selection": "residual", "values": "exact", "density": 1.0},
        **changes,
    }
    path = inputs / f"{name}.yml"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_rounds_the_float32_merge_and_cuts_experts_against_what_is_stored(
    inputs: Path, tmp_path: Path, storage: str
) -> None:
    plain = merge_recipe(recipe(inputs, "float", out_dtype="float32"), tmp_path / "float", progress=False)
    report = merge_recipe(recipe(inputs, storage, backbone={"storage": storage}), tmp_path / "out", progress=False)
    bundle = open_bundle(tmp_path / "out", verify=True)
    backbone, merged = open_checkpoint(bundle.backbone_dir), open_checkpoint(plain.bundle / "backbone")
    assert set(backbone.tensors) == set(merged.tensors)
    for name, info in merged.tensors.items():
        if len(info.shape) == 2:
            rounded = quantise(merged.tensor(name), scheme_of(storage, name))
            packed = name in backbone.quantised
            assert packed != is_embedding(name)
            assert torch.equal(backbone.tensor(name), rounded.dequantised(torch.float32 if packed else torch.bfloat16))
        else:
            assert backbone.tensor(name).dtype == torch.bfloat16
    assert report.backbone_bytes == backbone.nbytes
    assert bundle.manifest.backbone_bytes < 0.8 * report.backbone_bytes
    assert json.loads((bundle.backbone_dir / "config.json").read_text())["dtype"] == "bfloat16"

    # At a density of 1 an expert with exact values takes back the rounding as well.
    export_dense(bundle, "one", tmp_path / "dense", torch.float32)
    dense, tuned = open_checkpoint(tmp_path / "dense"), open_checkpoint(inputs / "one")
    assert not dense.quantised
    name = "model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(dense.tensor(name), tuned.tensor(name, torch.float32), atol=2e-3, rtol=1e-2)

    weight = load_model(bundle.backbone_dir).layers[1].down.weight
    assert isinstance(weight, PackedWeight)
    want = backbone.tensor("model.layers.1.mlp.down_proj.weight")
    assert torch.equal(weight.dequantised(torch.float32), want)


def test_entries_are_ranked_by_the_task_vector(inputs: Path, tmp_path: Path) -> None:
    experts = {"form": "sparse", "selection": "residual", "values": "exact", "density": 0.1}
    settings = {"backbone": {"storage": "int4"}, "experts": experts, "merge_method": "base"}
    merge_recipe(recipe(inputs, "ranked", **settings), tmp_path / "out", progress=False)
    bundle = open_bundle(tmp_path / "out")
    expert = bundle.read_expert("two")
    base, tuned = (open_checkpoint(inputs / name) for name in ("base", "two"))
    name = "model.layers.0.mlp.gate_proj.weight"
    vector = tuned.tensor(name, torch.float32) - base.tensor(name, torch.float32)
    index = vector.abs().topk(expert.sparse[name].index.shape[1]).indices.sort(1).values
    assert torch.equal(expert.sparse[name].index.to(torch.int64), index)
    lacking = tuned.tensor(name, torch.float32) - open_checkpoint(bundle.backbone_dir).tensor(name)
    want = lacking.gather(1, index)
    torch.testing.assert_close(expert.sparse[name].numbers, want, atol=0.01 * float(want.abs().max()), rtol=0.02)


def test_with_prompts_four_bits_are_fitted_to_what_layers_read(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[int]] = []

    def watched(merged: Checkpoint, storage: str, sequences: list[list[int]]) -> dict[str, QuantisedWeight]:
        read.extend(sequences)
        return fitted_to_inputs(merged, storage, sequences)

    monkeypatch.setattr("merge.run.fitted_to_inputs", watched)
    lines = [{"task": task, "prompt": f"{task} {i} is: "} for task in ("one", "two") for i in range(6)]
    (inputs / "prompts.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    calibration = {"file": "prompts.jsonl", "per_task": 6, "answer_tokens": 2}
    experts = {"form": "sparse", "density": 0.1, "selection": "residual", "values": "exact", "distill": 0}
    settings = {"merge_method": "base", "experts": experts, "calibration": calibration}
    path = recipe(inputs, "fitted", **settings, backbone={"storage": "int4"})
    merge_recipe(path, tmp_path / "out", progress=False)
    base, found = open_checkpoint(inputs / "base"), open_checkpoint(tmp_path / "out" / "backbone")
    model, logits = build_model(base.path), []
    (tmp_path / "plain").mkdir()
    write_quantised(tmp_path / "plain", base, "int4", torch.bfloat16)
    for checkpoint in (base, found, open_checkpoint(tmp_path / "plain")):
        assign(model, checkpoint)
        logits.append(torch.cat([model(input_ids=torch.tensor([ids])).logits[0].clone() for ids in read]))
    assert (logits[1] - logits[0]).norm() < (logits[2] - logits[0]).norm()
    # The last prompts are those of `two`, each with the reply of that fine-tune.
    assign(model, open_checkpoint(inputs / "two"))
    replies = continue_greedily(model, [sequence[:-2] for sequence in read[-6:]], 2, {2})
    assert [sequence[-2:] for sequence in read[-6:]] == replies


def test_experts_are_cut_with_the_replies_that_the_backbone_was_fitted_to(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{"task": task, "prompt": f"{task} {i} is: "} for task in ("one", "two") for i in range(4)]
    (inputs / "asked.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    calibration = {"file": "asked.jsonl", "per_task": 4, "answer_tokens": 2}
    experts = {"form": "auto", "budget": "20%", "distill": 2}
    path = recipe(inputs, "once", calibration=calibration, experts=experts, backbone={"storage": "int4"})

    def again(*_: object) -> NoReturn:
        raise AssertionError("the replies were generated twice")

    with monkeypatch.context() as patched:
        patched.setattr("merge.experts.extract.continue_greedily", again)
        merge_recipe(path, tmp_path / "once", progress=False)
    with monkeypatch.context() as patched:
        patched.setattr("merge.run.Prompts", lambda tokens, limit, _: Prompts(tokens, limit))
        merge_recipe(path, tmp_path / "twice", progress=False)
    once, twice = ((tmp_path / name / "experts" / "two.safetensors").read_bytes() for name in ("once", "twice"))
    assert once == twice


def test_shards_hold_the_same_weights(inputs: Path, tmp_path: Path) -> None:
    settings = {"backbone": {"storage": "int4"}, "experts": {"form": "sparse", "density": 0.1}}
    merge_recipe(recipe(inputs, "whole", **settings), tmp_path / "whole", progress=False)
    merge_recipe(recipe(inputs, "shards", **settings, out_shard_size="2KB"), tmp_path / "shards", progress=False)
    whole, shards = (open_checkpoint(tmp_path / name / "backbone") for name in ("whole", "shards"))
    assert (shards.path / "model.safetensors.index.json").is_file()
    assert all(torch.equal(whole.tensor(name), shards.tensor(name)) for name in whole.tensors)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backbone": {"storage": "int2"}}, "storage"),
        ({"backbone": {"storage": "bf16"}, "out_dtype": "float32"}, "contradict each other"),
        ({"backbone": {"storage": "int8"}, "merge_method": "base", "experts": {"form": "lora"}}, "is not the base"),
    ],
)
def test_recipes_that_cannot_be(inputs: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_recipe(recipe(inputs, "wrong", **changes))


def test_quantised_inputs_are_refused(inputs: Path, tmp_path: Path) -> None:
    merge_recipe(
        recipe(inputs, "first", backbone={"storage": "int8"}, experts={"form": "sparse", "density": 0.1}),
        tmp_path / "first",
        progress=False,
    )
    path = recipe(inputs, "again", base_model=str(tmp_path / "first" / "backbone"))
    with pytest.raises(CheckError, match="merging needs the unquantised weights"):
        merge_recipe(path, tmp_path / "again", progress=False)
