import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from merge.bundle import BundleError
from merge.checkpoint import open_checkpoint
from merge.export import export_adapter
from merge.lora import open_adapter
from tests.merge.export.bundles import EMBEDDING, NORMS, UP, WEIGHTS, Exported, write

PREFIX = "base_model.model."


@pytest.fixture
def made(tmp_path: Path) -> Exported:
    return write(tmp_path / "bundle")


def products(directory: Path) -> dict[str, torch.Tensor]:
    """B A · alpha / r by the weight's name, as a loader computes it."""
    tensors = load_file(directory / "adapter_model.safetensors")
    config = json.loads((directory / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    ends = (".lora_A.weight", ".lora_B.weight")
    modules = sorted({key.removesuffix(end) for key in tensors for end in ends if key.endswith(end)})
    return {f"{m.removeprefix(PREFIX)}.weight": scale * tensors[m + ends[1]] @ tensors[m + ends[0]] for m in modules}


def test_with_full_rank_the_adapter_is_the_expert(made: Exported, tmp_path: Path) -> None:
    report = export_adapter(made.bundle, "one", tmp_path / "out", 32)
    backbone = open_checkpoint(made.bundle.backbone_dir)
    exact = dict(made.model.named_parameters())
    for name, product in products(tmp_path / "out").items():
        torch.testing.assert_close(backbone.tensor(name) + product, exact[name].detach(), atol=1e-5, rtol=0)
    assert report.error < 1e-5


def test_a_merge_reads_the_adapter_as_the_task(made: Exported, tmp_path: Path) -> None:
    export_adapter(made.bundle, "one", tmp_path / "out", 32, norms=True)
    adapted = open_adapter(tmp_path / "out", open_checkpoint(made.bundle.backbone_dir))
    for name, parameter in made.model.named_parameters():
        torch.testing.assert_close(adapted.tensor(name), parameter, atol=1e-5, rtol=0)


def test_the_error_of_a_small_rank_is_told_by_layer_and_in_all(made: Exported, tmp_path: Path) -> None:
    report = export_adapter(made.bundle, "one", tmp_path / "out", 4)
    expert, found = made.bundle.read_expert("one"), products(tmp_path / "out")
    lost = size = 0.0
    assert set(report.layers) == set(WEIGHTS)
    for name, delta in expert.sparse.items():
        dense = delta.dense(found[name].shape[1])
        assert report.layers[name] == pytest.approx(float((dense - found[name]).norm() / dense.norm()), abs=1e-4)
        lost += float((dense - found[name]).square().sum())
        size += float(dense.square().sum())
    assert report.error == pytest.approx((lost / size) ** 0.5, abs=1e-4)
    assert 0.2 < report.error < 0.95
    assert report.bytes == sum(t.nbytes for t in load_file(tmp_path / "out" / "adapter_model.safetensors").values())
    record = json.loads((tmp_path / "out" / "overtone.json").read_text())
    assert record["layers"] == dict(report.layers)
    assert record["error"] == report.error
    assert record["expert_digest"] == made.bundle.card("one").digest


def test_the_config_is_a_loras(made: Exported, tmp_path: Path) -> None:
    export_adapter(made.bundle, "one", tmp_path / "out", 4)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"], config["r"], config["lora_alpha"]) == ("LORA", "CAUSAL_LM", 4, 4)
    assert config["target_modules"] == ["q_proj", "up_proj"]
    assert config["modules_to_save"] is None
    assert config["base_model_name_or_path"] == str(made.bundle.backbone_dir)
    # Every module of a target kind has its factors, even if the expert does not change it.
    names = set(products(tmp_path / "out"))
    assert names == {f"model.layers.{i}.{kind}.weight" for i in (0, 1) for kind in ("mlp.up_proj", "self_attn.q_proj")}
    assert not products(tmp_path / "out")["model.layers.0.self_attn.q_proj.weight"].any()


def test_norms_are_dropped_by_name_or_kept_whole(made: Exported, tmp_path: Path) -> None:
    plain = export_adapter(made.bundle, "one", tmp_path / "plain", 4)
    assert set(plain.dropped) == set(NORMS)
    assert all(share > 0 for share in plain.dropped.values())
    report = export_adapter(made.bundle, "one", tmp_path / "whole", 4, norms=True)
    assert (report.dropped, set(report.kept_whole)) == ({}, set(NORMS))
    config = json.loads((tmp_path / "whole" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["input_layernorm", "model.norm"]
    tensors = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    exact = dict(made.model.named_parameters())
    for name in (*NORMS, "model.layers.0.input_layernorm.weight"):
        torch.testing.assert_close(tensors[PREFIX + name], exact[name].detach())


def test_a_residual_of_the_embedding_is_dropped_and_counts_as_lost(tmp_path: Path) -> None:
    made = write(tmp_path / "bundle", weights=(UP, EMBEDDING))
    report = export_adapter(made.bundle, "one", tmp_path / "out", 32)
    assert EMBEDDING in report.dropped
    sizes = {n: float(d.numbers.square().sum()) for n, d in made.bundle.read_expert("one").sparse.items()}
    assert report.error == pytest.approx((sizes[EMBEDDING] / sum(sizes.values())) ** 0.5, rel=1e-3)


def test_what_cannot_be_an_adapter(made: Exported, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rank of at least 1, not 0"):
        export_adapter(made.bundle, "one", tmp_path / "out", 0)
    only = write(tmp_path / "only", weights=(EMBEDDING,))
    with pytest.raises(BundleError, match="changes no linear layer"):
        export_adapter(only.bundle, "one", tmp_path / "out", 4)
    with pytest.raises(BundleError, match="not empty"):
        export_adapter(made.bundle, "one", tmp_path / "only", 4)
    assert not (tmp_path / "out").exists()
