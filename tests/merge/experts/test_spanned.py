"""Experts of LoRAs over a merge of LoRAs: from the factors, and as if the backbone were any."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from merge.backbone import write_backbone
from merge.bundle import backbone_digest
from merge.checkpoint import Checkpoint, open_checkpoint
from merge.experts import ExpertConfig, Sources, cut_expert
from merge.experts.extract import _differs
from merge.experts.factored import choose_parts
from merge.experts.grams import Gram
from merge.experts.spanned import spanned_change
from merge.lora import open_adapter
from merge.methods import find_method
from tests.merge.experts.conftest import World
from tests.merge.lora.adapters import Q, factors, write_adapter

UP = "model.layers.1.mlp.up_proj"
WEIGHTS = (f"{Q}.weight", f"{UP}.weight")


def lora(world: World, path: Path, seed: int, rank: int = 4) -> Checkpoint:
    """A LoRA of which the directions are of different sizes."""
    made = {**factors(Q, 32, 32, rank, seed), **factors(UP, 48, 32, rank, seed + 10)}
    sizes = 0.02 * 0.5 ** torch.arange(rank)
    made = {name: factor * sizes if "lora_B" in name else factor for name, factor in made.items()}
    return open_adapter(write_adapter(path, made, r=rank), world.base)


@pytest.fixture
def loras(world: World, tmp_path: Path) -> dict[str, Checkpoint]:
    return {f"lora{seed}": lora(world, tmp_path / f"lora{seed}", seed) for seed in range(2)}


def merged(world: World, path: Path, method: str, tunes: dict[str, Checkpoint], **config: object) -> Sources:
    found = find_method(method)
    path.mkdir()
    merge = found.bind(found.parameters.model_validate({"weight": 0.4} if method == "task_arithmetic" else {}), {})
    write_backbone(path, world.base, tunes, merge)
    backbone = open_checkpoint(path)
    resolved = ExpertConfig.model_validate({"form": "low_rank", "storage": "bf16", "budget": 0.03, **config})
    digest = backbone_digest(path)
    return Sources(world.base, backbone, digest, resolved.resolved(calibrated=False), None, tuple(tunes.values()))


def left(sources: Sources, tune: Checkpoint, name: str, parts: dict[str, torch.Tensor]) -> float:
    """Squared error of what backbone + expert lacks."""
    lacking = sources.lacking(tune, name)
    return float((lacking - parts.get(name, torch.zeros(()))).double().square().sum())


def chosen(sources: Sources, tune: Checkpoint, grams: Sequence[Gram] = ()) -> dict[str, torch.Tensor]:
    parts = choose_parts(tune, sources, sources.room(0), lambda: grams)
    assert not parts.values
    return {name: item.b @ item.a for name, item in parts.products.items()}


@pytest.mark.parametrize("method", ["task_arithmetic", "linear", "iso_c", "tsv_m", "knots"])
def test_the_expert_is_as_near_as_that_of_the_whole_matrices(
    world: World, loras: dict[str, Checkpoint], tmp_path: Path, method: str
) -> None:
    given = merged(world, tmp_path / "merged", method, loras)
    tune = loras["lora1"]
    found, dense = chosen(given, tune), chosen(replace(given, fine_tunes=()), tune)
    assert set(WEIGHTS) <= set(found)
    for name in WEIGHTS:
        change = spanned_change(tune, given, name)
        assert change is not None
        assert change.left.shape[1] == 8
        lacking = given.lacking(tune, name)
        outside = float((lacking - change.left @ change.right).double().square().sum())
        assert outside < 1e-3 * float(lacking.square().sum())
        # The best approximation within the space is off by what is outside of it, and no more.
        assert left(given, tune, name, found) <= left(given, tune, name, dense) * (1 + 1e-4) + outside
        assert float((found[name] - dense[name]).norm()) < 0.05 * float(lacking.norm())


def test_no_matrix_is_decomposed_and_no_entries_are_weighed(
    world: World, loras: dict[str, Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = merged(world, tmp_path / "merged", "task_arithmetic", loras, form="auto")
    monkeypatch.setattr("merge.experts.low_rank.leading_svd", lambda *_: pytest.fail("a matrix is decomposed"))
    monkeypatch.setattr("merge.experts.factored._entries", lambda *_: pytest.fail("entries are weighed"))
    expert = cut_expert("lora0", loras["lora0"], given).expert
    assert set(expert.low_rank) == set(WEIGHTS)
    assert not expert.sparse


def test_what_layers_read_weighs_the_directions_the_same(
    world: World, loras: dict[str, Checkpoint], tmp_path: Path
) -> None:
    given = merged(world, tmp_path / "merged", "task_arithmetic", loras, selection="residual")
    inputs = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 32)
    grams = [Gram((name,), inputs.T @ inputs / 64) for name in WEIGHTS]
    tune = loras["lora0"]
    found, dense = chosen(given, tune, grams), chosen(replace(given, fine_tunes=()), tune, grams)
    for name in WEIGHTS:
        apart, whole = (found[name] - dense[name]) @ inputs.T, given.lacking(tune, name) @ inputs.T
        assert float(apart.norm()) < 0.05 * float(whole.norm())


def test_other_backbones_and_fine_tunes_are_decomposed_whole(
    world: World, loras: dict[str, Checkpoint], tmp_path: Path
) -> None:
    tune, name = loras["lora0"], WEIGHTS[0]
    trimmed = merged(world, tmp_path / "trimmed", "ties", loras)
    assert spanned_change(tune, trimmed, name) is None, "trimmed task vectors are not in the space of the factors"
    given = merged(world, tmp_path / "merged", "task_arithmetic", loras)
    assert spanned_change(tune, given, name) is not None
    assert spanned_change(tune, replace(given, fine_tunes=()), name) is None
    full = world.fine_tunes["one"]
    assert spanned_change(tune, replace(given, fine_tunes=(tune, full)), name) is None
    assert spanned_change(full, given, name) is None, "the backbone is in the space, but the fine-tune is not"
    wide = lora(world, tmp_path / "wide", 7, rank=16)
    assert spanned_change(tune, replace(given, fine_tunes=(*given.fine_tunes, wide)), name) is None


def test_a_weight_that_no_lora_changes(world: World, loras: dict[str, Checkpoint], tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    given = merged(world, tmp_path / "merged", "task_arithmetic", loras)
    change = spanned_change(loras["lora0"], given, name)
    assert change is not None
    assert change.left.shape[1] == 0
    other = replace(given, backbone=world.fine_tunes["one"])
    assert spanned_change(loras["lora0"], other, name) is None, "something else changed the backbone"


def test_weights_that_differ_are_found(world: World, loras: dict[str, Checkpoint], tmp_path: Path) -> None:
    given = merged(world, tmp_path / "merged", "task_arithmetic", loras)
    alike = replace(given, backbone=world.base)
    other = "model.layers.0.mlp.down_proj.weight"
    for tune, sources, expected in (
        (loras["lora0"], alike, set(WEIGHTS)),
        (loras["lora0"], given, set(WEIGHTS)),
        (world.fine_tunes["one"], alike, set(given.weights())),
    ):
        assert {name for name in given.weights() if _differs(tune, sources, name)} == expected
    assert _differs(loras["lora0"], replace(given, backbone=world.backbone), other), "the backbone has another"
