import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from merge.bundle import Bundle, BundleError, write_expert
from merge.checkpoint import open_checkpoint
from merge.inspect import inspect_bundle
from merge.inspect.layers import layer_and_kind

DOWN = "model.layers.1.mlp.down_proj.weight"


def test_experts_are_what_the_files_hold(bundle: Bundle) -> None:
    found = inspect_bundle(bundle)
    assert [item.name for item in found.experts] == ["one", "two"]
    for item in found.experts:
        card = bundle.card(item.name)
        assert (item.bytes, item.nnz, item.entries, item.storage) == (card.bytes, card.nnz, card.entries, "int8")
        assert item.share == pytest.approx(card.bytes / open_checkpoint(bundle.backbone_dir).nbytes, abs=1e-6)
        assert item.density == pytest.approx(0.1, abs=0.01)
        assert item.cut["selection"] == "magnitude"
    assert found.router
    assert found.name == "tiny"


def test_parameters_add_up_to_the_experts(bundle: Bundle) -> None:
    found = inspect_bundle(bundle)
    assert sum(item.bytes for item in found.parameters) == pytest.approx(
        sum(item.bytes for item in found.experts) / 2, abs=1
    )
    down = next(item for item in found.parameters if item.name == DOWN)
    assert (down.layer, down.kind, down.elements) == (1, "mlp.down_proj", 32 * 48)
    weight = open_checkpoint(bundle.backbone_dir).tensor(DOWN, torch.float32)
    norms = [float(bundle.read_expert(name).sparse[DOWN].dense(48).norm() / weight.norm()) for name in ("one", "two")]
    assert down.relative_norm == pytest.approx(sum(norms) / 2, abs=1e-5)
    assert down.density == pytest.approx(5 / 48, abs=1e-6)


def test_an_expert_that_does_not_fit_is_named(bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle.path, copy)
    expert = bundle.read_expert("one")
    moved = replace(expert, sparse={"model.layers.9.mlp.up_proj.weight": expert.sparse[DOWN]})
    write_expert(copy / "experts" / "one.safetensors", moved)
    with pytest.raises(BundleError, match=r"'one' has a residual for model\.layers\.9.*which the backbone does not"):
        inspect_bundle(Bundle(copy, bundle.manifest))


def test_the_text_names_every_expert_and_the_extremes(bundle: Bundle) -> None:
    text = inspect_bundle(bundle).as_text()
    assert text.startswith("tiny: 2 experts, with a router\nbackbone: ")
    for part in (
        "\none ",
        "\ntwo ",
        "int8",
        "similarity of the experts (cosine): ",
        "expected by chance",
        "weights in fp32",
    ):
        assert part in text
    assert "rank" not in text, "no expert has a low-rank part"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("model.layers.3.mlp.up_proj.weight", (3, "mlp.up_proj")),
        ("model.layers.0.self_attn.q_proj.bias", (0, "self_attn.q_proj.bias")),
        ("model.norm.weight", (None, "model.norm")),
        ("encoder.layer.12.output.dense.weight", (12, "output.dense")),
    ],
)
def test_names_are_split_at_the_layers_number(name: str, found: tuple[int | None, str]) -> None:
    assert layer_and_kind(name) == found
