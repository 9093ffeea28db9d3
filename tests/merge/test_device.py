"""`--device`: the GPU is found or refused, and every stage computes on it."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from merge.bundle import open_bundle
from merge.checkpoint import open_checkpoint
from merge.device import CPU, DeviceError, find_device
from merge.methods import METHODS
from merge.quantised_backbone import fitted_to_inputs
from merge.run import merge_recipe
from tests.merge.lora.adapters import Q, factors, write_adapter
from tests.merge.pretended import GPU, pretended_gpu
from tests.merge.tiny import save_fine_tune, save_tiny

WORDS = ("ab", "ba", "cab")


def test_without_a_gpu_auto_is_the_processor_and_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == find_device("cpu") == CPU
    with pytest.raises(DeviceError, match="cuda is not available; use --device cpu"):
        find_device("cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", "", "mps"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(DeviceError, match="must be auto, cpu, cuda or cuda:N"):
        find_device(name)


def test_a_gpu_is_found_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("auto") == find_device("cuda") == GPU
    assert find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match="this machine has 2: the last one is cuda:1"):
        find_device("cuda:2")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("models")
    save_tiny(root / "base", tied=False)
    save_fine_tune(root / "base", root / "one", 1)
    save_fine_tune(root / "base", root / "two", 2)
    write_adapter(root / "lora", factors(Q, 32, 32))
    prompts = [{"task": task, "prompt": f"{task} {word}."} for task in ("one", "two") for word in WORDS]
    (root / "prompts.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in prompts))
    return root


def merged(models: Path, out: Path, device: str, document: dict[str, Any]) -> dict[str, torch.Tensor]:
    path = out.with_suffix(".yml")
    common = {"name": "tiny", "base_model": str(models / "base")}
    named = [{"model": str(models / name)} for name in document.pop("models", ("one", "two"))]
    path.write_text(json.dumps({**common, "models": named, **document}))
    merge_recipe(path, out, progress=False, device=device)
    return {
        f"{file.relative_to(out)} {name}": tensor
        for file in sorted(out.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def check_same(models: Path, tmp_path: Path, patch: pytest.MonkeyPatch, document: dict[str, Any]) -> Counter[str]:
    """A merge on the GPU gives the numbers of one on the processor; what was computed on the GPU."""
    expected = merged(models, tmp_path / "cpu", "cpu", dict(document))
    with pretended_gpu(patch) as done:
        found = merged(models, tmp_path / "cuda", "cuda", dict(document))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
    assert open_bundle(tmp_path / "cuda", verify=True).manifest.versions["device"] == "cuda"
    return done


@pytest.mark.parametrize("name", sorted(METHODS))
def test_methods_compute_on_the_gpu(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    document = {"merge_method": name, "experts": {"density": 0.05, "include": ["*.0.mlp.up_proj*"]}}
    document |= {"parameters": {"lambda": 0.5}} if name not in {"base", "linear", "karcher"} else {}
    done = check_same(
        models, tmp_path, monkeypatch, {**document, "models": ("one", "two", "lora")[: 2 + (name != "nuslerp")]}
    )
    assert done["sub"] >= (21 if name == "base" else 42)  # task vectors of 21 tensors


def test_low_rank_experts(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = {"merge_method": "linear", "experts": {"form": "low_rank", "budget": 0.1}}
    done = check_same(models, tmp_path, monkeypatch, {**document, "models": ("one", "two", "lora")})
    assert done["linalg_svd"] + done["_linalg_svd"] >= 14


@pytest.mark.parametrize(
    "experts", [{"form": "both", "budget": 0.1}, {"budget": 0.1, "storage": "int8"}, {"density": 0.05}]
)
def test_experts_without_prompts(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experts: dict[str, Any]
) -> None:
    done = check_same(models, tmp_path, monkeypatch, {"merge_method": "linear", "experts": experts})
    assert done["topk"] >= 14


def calibration(models: Path) -> dict[str, Any]:
    return {"file": str(models / "prompts.jsonl"), "per_task": 2, "answer_tokens": 2}


@pytest.mark.parametrize("experts", [{"form": "both", "budget": 0.1, "distill": 1}, {"density": 0.05, "distill": 1}])
def test_experts_with_prompts(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experts: dict[str, Any]
) -> None:
    document = {"merge_method": "base", "experts": experts, "calibration": calibration(models)}
    done = check_same(models, tmp_path, monkeypatch, document)
    assert done["embedding"] >= 4


def test_a_backbone_rounded_to_what_layers_read(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = open_checkpoint(models / "base")
    expected = fitted_to_inputs(base, "int4", [[1, 5, 6, 7], [1, 9]])
    with pretended_gpu(monkeypatch) as done:
        found = fitted_to_inputs(base.on(GPU), "int4", [[1, 5, 6, 7], [1, 9]])
    assert done["cholesky_inverse"] == len(found) == 14
    for name, weight in expected.items():
        assert torch.equal(found[name].value, weight.value)
        assert torch.equal(found[name].scale, weight.scale)


def test_frank_wolfe(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = {
        "variant": "hard",
        "steps": 1,
        "objective": {"replies": "fine_tune", "answer_tokens": 2, "per_task": 1},
    }
    document = {"merge_method": "frank_wolfe", "parameters": parameters, "calibration": calibration(models)}
    document["experts"] = {"density": 0.05, "distill": 0, "selection": "residual", "values": "exact"}
    done = check_same(models, tmp_path, monkeypatch, document)
    assert done["embedding_dense_backward"] >= 1


def test_ray_computes_on_processors(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_gpu(monkeypatch), pytest.raises(DeviceError, match="--ray computes on processors"):
        merge_recipe(models / "none.yml", tmp_path / "out", ray=True, device="cuda")
