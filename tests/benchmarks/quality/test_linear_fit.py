from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.quality.linear_fit import Moments, fit_layers, linear_names
from merge.checkpoint import Checkpoint, open_checkpoint


def checkpoint(path: Path, module: nn.Module) -> Checkpoint:
    path.mkdir()
    (path / "config.json").write_text("{}")
    save_file(
        {name: tensor.detach().contiguous() for name, tensor in module.named_parameters()}, path / "model.safetensors"
    )
    return open_checkpoint(path)


def test_moments_are_of_what_each_layer_reads() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    x = torch.randn(7, 5)
    moments = Moments.of(module, linear_names(module, ()), lambda: [module(x[:3]), module(x[3:])])
    hidden = module[:2](x)
    torch.testing.assert_close(moments.gram["0.weight"], x.T @ x)
    torch.testing.assert_close(moments.gram["2.weight"], (hidden.T @ hidden).detach())
    assert linear_names(module, ("2.*",)) == ["0.weight"]


def test_a_full_expert_restores_the_layers_output_and_a_part_does_better_than_none(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 6))
    tuned = checkpoint(tmp_path / "tuned", module)
    backbone = {name: p.detach() + 0.1 * torch.randn_like(p) for name, p in module.named_parameters()}
    x = torch.randn(200, 12)
    moments = Moments.of(module, ["0.weight"], lambda: module(x))
    errors = []
    for density in (1 / 12, 0.5, 1.0):
        index, value = fit_layers(moments, tuned, backbone, density)
        weight = backbone["0.weight"].scatter_add(1, index["0.weight"], value["0.weight"])
        errors.append(float(((module[0].weight.detach() - weight) @ x.T).square().mean()))
    nothing = float(((module[0].weight.detach() - backbone["0.weight"]) @ x.T).square().mean())
    assert nothing > errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-4 * nothing
