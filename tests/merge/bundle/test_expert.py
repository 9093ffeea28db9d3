import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from merge.bundle import BundleError, Expert, SparseDelta, expert_digest, read_expert, write_expert

BACKBONE = "ab" * 32


def make_expert(name: str = "roman", seed: int = 0) -> Expert:
    gen = torch.Generator().manual_seed(seed)
    index = torch.stack([torch.randperm(17, generator=gen)[:3].sort().values for _ in range(5)])
    value = torch.randn(5, 3, generator=gen).to(torch.bfloat16)
    return Expert(
        name=name,
        backbone_digest=BACKBONE,
        density=3 / 17,
        sparse={"layer.weight": SparseDelta(index.to(torch.uint16), value)},
        dense={"norm.weight": torch.randn(7, generator=gen)},
        metadata={"selection": "magnitude"},
    )


def test_round_trip_is_exact(tmp_path: Path) -> None:
    expert = make_expert()
    write_expert(tmp_path / "roman.safetensors", expert)
    read = read_expert(tmp_path / "roman.safetensors", BACKBONE)
    assert (read.name, read.density, dict(read.metadata)) == ("roman", expert.density, {"selection": "magnitude"})
    assert torch.equal(read.sparse["layer.weight"].index, expert.sparse["layer.weight"].index)
    assert torch.equal(read.sparse["layer.weight"].value, expert.sparse["layer.weight"].value)
    assert torch.equal(read.dense["norm.weight"], expert.dense["norm.weight"])
    assert read.nbytes == 5 * 3 * 4 + 7 * 4
    assert read.nnz == 5 * 3 + 7
    assert list(tmp_path.iterdir()) == [tmp_path / "roman.safetensors"]


def test_dense_adds_each_entry_in_its_column() -> None:
    delta = SparseDelta(
        torch.tensor([[0, 2], [1, 1]], dtype=torch.uint16), torch.tensor([[1.0, 2.0], [3.0, 0.0]], dtype=torch.bfloat16)
    )
    assert delta.dense(3).tolist() == [[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]
    assert delta.nnz == 3


def test_digest_is_of_the_content_not_the_name(tmp_path: Path) -> None:
    write_expert(tmp_path / "a.safetensors", make_expert(seed=1))
    write_expert(tmp_path / "b.safetensors", make_expert(seed=1))
    write_expert(tmp_path / "c.safetensors", make_expert(seed=2))
    digests = [expert_digest(tmp_path / f"{name}.safetensors") for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    write_expert(tmp_path / "e.safetensors", make_expert())
    with pytest.raises(BundleError, match="cut against backbone abababababab, not against cdcdcdcdcdcd"):
        read_expert(tmp_path / "e.safetensors", "cd" * 32)


def broken(index: list[list[int]], value: list[list[float]]) -> SparseDelta:
    return SparseDelta(torch.tensor(index, dtype=torch.uint16), torch.tensor(value, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("delta", "message"),
    [
        (broken([[2, 1]], [[1.0, 1.0]]), "do not ascend"),
        (broken([[1, 1]], [[1.0, 1.0]]), "do not ascend"),
        (broken([[0, 1]], [[1.0, float("nan")]]), "NaN"),
        (broken([[0, 1]], [[1.0]]), "same"),
        (SparseDelta(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.bfloat16)), "dtypes"),
        (SparseDelta(torch.full((1, 1), -1, dtype=torch.int32), torch.ones(1, 1, dtype=torch.bfloat16)), "negative"),
    ],
)
def test_residuals_that_break_the_format_are_refused(tmp_path: Path, delta: SparseDelta, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        write_expert(tmp_path / "e.safetensors", replace(make_expert(), sparse={"w": delta}))
    assert not any(tmp_path.iterdir())


def test_dense_deltas_are_float32_vectors(tmp_path: Path) -> None:
    for delta, message in [(torch.zeros(2, 2), "1-D"), (torch.tensor([float("inf")]), "infinity")]:
        with pytest.raises(BundleError, match=message):
            write_expert(tmp_path / "e.safetensors", replace(make_expert(), dense={"n": delta}))


def test_an_empty_expert_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no residual at all"):
        write_expert(tmp_path / "e.safetensors", replace(make_expert(), sparse={}, dense={}))


@pytest.mark.parametrize(
    ("tensors", "header", "message"),
    [
        ({"w": torch.zeros(1)}, {}, "lacks the key 'overtone'"),
        ({"w": torch.zeros(1)}, {"format_version": "one"}, "damaged expert header"),
        (None, None, "not a readable safetensors file"),
        ({"w": torch.zeros(1)}, {"format_version": 9}, "expert format 9"),
        ({"w.other": torch.zeros(1)}, {"format_version": 1}, "no part of an expert"),
        ({"w.index": torch.zeros(1, 1, dtype=torch.uint16)}, {"format_version": 1}, "without w.value"),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor] | None, header: dict[str, object] | None, message: str
) -> None:
    path = tmp_path / "e.safetensors"
    if tensors is None or header is None:
        path.write_bytes(b"not safetensors")
    else:
        rest = {"task": "t", "backbone_digest": BACKBONE, "density": 0.1, "metadata": {}}
        save_file(tensors, path, metadata={"overtone": json.dumps(rest | header)} if header else None)
    with pytest.raises(BundleError, match=message):
        read_expert(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no expert file"):
        read_expert(tmp_path / "none.safetensors")
