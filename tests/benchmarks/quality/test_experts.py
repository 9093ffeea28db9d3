import math
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks.quality.domain import Domain, Residual
from benchmarks.quality.experts import backbone_bytes, data_free, expert_bytes, stored, with_expert
from merge.bundle import Expert, SparseDelta, write_expert
from merge.bundle.quantise import quantise_rows

DOMAIN = cast("Domain", SimpleNamespace(aside=("emb*",)))


@pytest.fixture
def models() -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(0)
    base = {"w": torch.randn(6, 20), "emb": torch.randn(9, 20), "norm": torch.randn(20)}
    tuned = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in base.items()}
    backbone = {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in base.items()}
    return base, tuned, backbone


def test_a_data_free_expert_is_the_largest_entries_times_mu(
    models: tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]],
) -> None:
    base, tuned, backbone = models
    expert = data_free(DOMAIN, backbone, base, tuned, density=0.1, factor=2.0)
    assert set(expert.index) == {"w"}
    vector = tuned["w"] - base["w"]
    assert expert.index["w"].shape == (6, 2)
    kept = vector.gather(1, expert.index["w"])
    assert float(kept.abs().min(1).values.sum()) == pytest.approx(float(vector.abs().topk(2).values[:, 1].sum()))
    mu = 2.0 * -math.log10(0.1) * float(kept.abs().mean()) / float(vector.abs().mean())
    torch.testing.assert_close(expert.value["w"], kept * mu)
    torch.testing.assert_close(backbone["norm"] + expert.dense["norm"], tuned["norm"])


def test_an_expert_is_added_where_it_has_entries_and_nowhere_else(
    models: tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]],
) -> None:
    base, tuned, backbone = models
    expert = data_free(DOMAIN, backbone, base, tuned, density=0.1, factor=1.0)
    changed = with_expert(backbone, expert, "bfloat16")
    difference = changed["w"] - backbone["w"]
    assert int(torch.count_nonzero(difference)) == 12
    torch.testing.assert_close(difference.gather(1, expert.index["w"]), expert.value["w"], rtol=0.01, atol=1e-6)
    assert torch.equal(changed["emb"], backbone["emb"])


def test_int8_values_are_off_by_little_more_than_half_a_step() -> None:
    value = torch.tensor([[1.0, -0.3, 0.011], [0.0, 0.0, 0.0]])
    rounded = stored(value, "int8")
    assert float((rounded - value).abs().max()) <= 0.5 / 127 + 2**-8
    assert torch.equal(rounded[1], value[1])


def test_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    index = torch.rand(40, 300).topk(5, 1).indices.sort(1).values
    value, delta = torch.randn(40, 5), torch.randn(20)
    expert = Residual({"w": index}, {"w": value}, {"norm": delta})
    quantised, scale = quantise_rows(value)
    kinds = {
        "bfloat16": SparseDelta(index.to(torch.uint16), value.to(torch.bfloat16)),
        "int8": SparseDelta(index.to(torch.uint16), quantised, scale),
    }
    for storage, sparse in kinds.items():
        file = tmp_path / f"{storage}.safetensors"
        write_expert(file, Expert("x", "0" * 64, 0.01, {"w": sparse}, {"norm": delta}))
        with safe_open(file, framework="pt") as opened:
            size = sum(opened.get_tensor(name).nbytes for name in opened.keys())  # noqa: SIM118 (not a mapping)
        assert expert_bytes(expert, storage) == size  # type: ignore[arg-type]
    backbone = {"w": torch.zeros(6, 20), "emb": torch.zeros(9, 20), "norm": torch.zeros(20)}
    assert backbone_bytes(backbone, DOMAIN) == (2 * (120 + 180 + 20), 2 * (120 + 20))
