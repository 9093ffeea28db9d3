"""The order of an MLP's neurons means nothing to a network, but FR's filter sees it.

Permuting the rows of gate_proj and up_proj and the columns of down_proj alike leaves what a model computes as it is. A
filter over the spatial frequencies of a weight (FREE-Merging, arXiv 2411.16815) takes neighbouring rows for neighbours,
so its backbone computes something else; methods that treat every entry, or the whole matrix, alike do not mind.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from merge.backbone import write_backbone
from merge.checkpoint import open_checkpoint
from merge.methods import find_method
from tests.merge.tiny import save_fine_tune, save_tiny

NAMES = ("one", "two")
IDS = torch.tensor([[1, 7, 9, 12, 4, 20]])
FR = ("fr", {"filter": "official", "r": 0.7})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two fine-tunes, and under `permuted/` the same with other orders of the first layer's neurons."""
    root: Path = tmp_path_factory.mktemp("neurons")
    save_tiny(root / "base")
    for seed, name in enumerate(NAMES, 1):
        save_fine_tune(root / "base", root / name, seed, size=0.3)
    for name in ("base", *NAMES):
        model = LlamaForCausalLM.from_pretrained(root / name).requires_grad_(False)
        mlp = model.model.layers[0].mlp
        order = torch.randperm(mlp.gate_proj.weight.shape[0], generator=torch.Generator().manual_seed(0))
        for layer in (mlp.gate_proj, mlp.up_proj):
            layer.weight.copy_(layer.weight[order])
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, order])
        model.save_pretrained(root / "permuted" / name)
    return root


def logits(directory: Path) -> Tensor:
    with torch.no_grad():
        found: Tensor = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)(IDS).logits
    return found


def merged(
    models: Path, tunes: dict[str, Path], base: Path, method: str, parameters: dict[str, Any], out: str
) -> Tensor:
    """What the backbone of some models computes."""
    (models / out).mkdir()
    chosen = find_method(method)
    bound = chosen.bind(chosen.parameters.model_validate(parameters), {})
    write_backbone(models / out, open_checkpoint(base), {k: open_checkpoint(v) for k, v in tunes.items()}, bound)
    return logits(models / out)


def plain(models: Path) -> dict[str, Path]:
    return {name: models / name for name in NAMES}


@pytest.mark.parametrize("name", ["base", *NAMES])
def test_a_permuted_model_computes_the_same(models: Path, name: str) -> None:
    torch.testing.assert_close(logits(models / "permuted" / name), logits(models / name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "parameters", "same"),
    [
        ("linear", {}, True),
        ("fr", {"r": 0.7, "control": "shrink"}, True),
        ("iso_c", {}, True),
        (*FR, False),
    ],
    ids=["linear", "shrink control", "iso_c", "fr"],
)
def test_fr_alone_sees_the_order_that_all_models_share(
    models: Path, method: str, parameters: dict[str, Any], same: bool
) -> None:
    before = merged(models, plain(models), models / "base", method, parameters, f"{method}-{same}-plain")
    folders = {name: models / "permuted" / name for name in NAMES}
    after = merged(models, folders, models / "permuted" / "base", method, parameters, f"{method}-{same}-permuted")
    # Backbones are stored in the base's dtype, float32: what is left is rounding.
    assert bool(torch.allclose(before, after, rtol=1e-3, atol=1e-3)) == same


def test_one_fine_tune_that_computes_the_same_gives_another_backbone(models: Path) -> None:
    before = merged(models, plain(models), models / "base", *FR, "one-plain")
    after = merged(models, {**plain(models), "two": models / "permuted" / "two"}, models / "base", *FR, "one-permuted")
    assert (before - after).abs().max() > 0.01 * before.abs().max()
