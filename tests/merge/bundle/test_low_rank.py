import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from merge.bundle import (
    BundleError,
    Expert,
    LowRankDelta,
    SparseDelta,
    expert_bytes,
    quantise_rows,
    read_expert,
    read_layout,
    write_expert,
)

BACKBONE = "ab" * 32
ROWS, COLUMNS, RANK = 6, 5, 2


def factors(dtype: torch.dtype = torch.bfloat16, rank: int = RANK, seed: int = 0) -> LowRankDelta:
    gen = torch.Generator().manual_seed(seed)
    spread = 40 if dtype == torch.int8 else 1
    a, b = (torch.randn(shape, generator=gen) * spread for shape in ((rank, COLUMNS), (ROWS, rank)))
    return LowRankDelta(a.to(dtype), b.to(dtype), torch.rand(rank, generator=gen) + 0.1)


def sparse(storage: str = "bf16") -> SparseDelta:
    index = torch.tensor([[0, 3]] * ROWS, dtype=torch.uint16)
    value = torch.arange(1.0, 1 + 2 * ROWS).view(ROWS, 2)
    return SparseDelta(index, value.bfloat16()) if storage == "bf16" else SparseDelta(index, *quantise_rows(value))


def expert(low_rank: Mapping[str, LowRankDelta], parts: Mapping[str, SparseDelta] | None = None) -> Expert:
    return Expert("roman", BACKBONE, 0.1, parts or {}, {"norm": torch.ones(3)}, {"a": "b"}, low_rank)


def format_version(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return int(json.loads(file.metadata()["overtone"])["format_version"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int8])
def test_factors_come_back_as_they_were(tmp_path: Path, dtype: torch.dtype) -> None:
    path, delta = tmp_path / "e.safetensors", factors(dtype)
    written = expert({"w": delta, "both": delta}, {"both": sparse("int8"), "s": sparse()})
    write_expert(path, written)
    read = read_expert(path, BACKBONE)
    assert set(read.low_rank) == {"w", "both"}
    assert set(read.sparse) == {"both", "s"}
    assert read.matrices == ("both", "s", "w")
    for name in ("a", "b", "scale"):
        found = getattr(read.low_rank["w"], name)
        assert found.dtype == getattr(delta, name).dtype
        assert torch.equal(found, getattr(delta, name))
    assert format_version(path) == 3
    per_part = RANK * (ROWS + COLUMNS)
    assert read.entries == 2 * per_part + 2 * 2 * ROWS + 3
    assert read.nnz == 2 * delta.nnz + 2 * 2 * ROWS + 3
    low_rank_bytes = per_part * dtype.itemsize + 4 * RANK
    assert delta.nbytes == low_rank_bytes
    assert expert_bytes(path) == 2 * low_rank_bytes + (2 * 2 * ROWS + 2 * ROWS) + 4 * 2 * ROWS + 4 * 3
    layout = read_layout(path)
    assert layout.ranks == {"w": RANK, "both": RANK}
    assert layout.quantised_ranks == ({"w", "both"} if dtype == torch.int8 else set())
    assert (layout.entries, layout.quantised) == ({"both": 2, "s": 2}, {"both"})
    assert layout.bytes["both"] == low_rank_bytes + 2 * 2 * ROWS + 2 * ROWS


def test_dense_is_the_scaled_product() -> None:
    delta = LowRankDelta(
        torch.tensor([[1, 0], [0, 2]], dtype=torch.int8),
        torch.tensor([[3, 0], [1, -1]], dtype=torch.int8),
        torch.tensor([0.5, 10.0]),
    )
    assert delta.dense().tolist() == [[1.5, 0.0], [0.5, -20.0]]
    assert delta.dense(torch.bfloat16).dtype == torch.bfloat16
    assert (delta.rank, delta.shape, delta.entries, delta.nnz) == (2, (2, 2), 8, 5)


def test_slices_of_one_tensor_can_be_written(tmp_path: Path) -> None:
    joint = torch.randn(4, COLUMNS)
    delta = replace(factors(torch.float32), a=joint[:2])
    write_expert(tmp_path / "e", expert({"q": delta, "k": replace(delta, a=joint[2:])}))
    assert torch.equal(read_expert(tmp_path / "e").low_rank["k"].a, joint[2:])


@pytest.mark.parametrize("storage", ["bf16", "int8"])
def test_files_without_low_rank_parts_stay_as_they_were(tmp_path: Path, storage: str) -> None:
    part = sparse(storage)
    write_expert(tmp_path / "now", expert({}, {"w": part}))
    tensors = {"w.index": part.index, "w.value": part.value, "norm.delta": torch.ones(3)}
    header: dict[str, object] = {
        "format_version": 1, "task": "roman", "backbone_digest": BACKBONE, "density": 0.1, "metadata": {"a": "b"},
    }  # fmt: skip
    if part.scale is not None:
        del tensors["w.index"]
        # Rows are four columns wide: from column 3 to column 0 of the next row is a distance of 1.
        gaps = [0, 3] + [1, 3] * (ROWS - 1)
        tensors |= {"w.scale": part.scale, "w.gap": torch.tensor(gaps, dtype=torch.uint8)}
        tensors["w.value"] = part.value.flatten()
        header |= {"format_version": 2, "gaps": {"w": {"width": 4, "entries": 2}}}
    save_file(tensors, tmp_path / "then", metadata={"overtone": json.dumps(header)})
    assert (tmp_path / "now").read_bytes() == (tmp_path / "then").read_bytes()
    layout = read_layout(tmp_path / "now")
    assert (layout.ranks, layout.quantised_ranks) == ({}, set())


def damaged(**changes: Tensor | None) -> dict[str, Tensor]:
    whole = factors()
    tensors: dict[str, Tensor | None] = {
        "w.lora_a": whole.a, "w.lora_b": whole.b, "w.lora_scale": whole.scale,
        **{f"w.{name}": tensor for name, tensor in changes.items()},
    }  # fmt: skip
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def floats(*shape: int, at: float | None = None) -> Tensor:
    tensor = torch.ones(shape, dtype=torch.bfloat16)
    if at is not None:
        tensor.view(-1)[0] = at
    return tensor


DAMAGES: list[tuple[dict[str, Tensor | None], str]] = [
    ({"lora_a": floats(3, 5)}, r"w.lora_a is \[3, 5\] and .lora_b \[6, 2\]; they must be \[r, K\] and \[N, r\]"),
    ({"lora_b": floats(6)}, r"w.lora_a is \[2, 5\] and .lora_b \[6\]; they must be"),
    ({"lora_a": floats(2, 5).float()}, "w.lora_a is torch.float32 and .lora_b torch.bfloat16; both must be"),
    (
        {"lora_a": floats(2, 5).double(), "lora_b": floats(6, 2).double()},
        "w.lora_a is torch.float64 and .lora_b torch.float64; both must be bfloat16, float16, float32 or int8",
    ),
    ({"lora_a": floats(0, 5), "lora_b": floats(6, 0), "lora_scale": torch.ones(0)}, "rank 0; the rank of a"),
    (
        {"lora_a": floats(6, 5), "lora_b": floats(6, 6), "lora_scale": torch.ones(6)},
        r"w has a low-rank part of rank 6; the rank of a \[6, 5\] weight must be 1 to 5",
    ),
    ({"lora_scale": torch.ones(3)}, r"w.lora_scale is torch.float32 \[3\]; it must be float32 and \[2\]"),
    ({"lora_scale": floats(2)}, r"w.lora_scale is torch.bfloat16 \[2\]; it must be float32 and \[2\]"),
    ({"lora_scale": torch.tensor(1.0)}, r"w.lora_scale is torch.float32 \[\]; it must be"),
    ({"lora_a": floats(2, 5, at=float("nan"))}, "w.lora_a holds NaN or infinity"),
    ({"lora_b": floats(6, 2, at=float("inf"))}, "w.lora_b holds NaN or infinity"),
    ({"lora_scale": torch.tensor([1.0, float("nan")])}, "w.lora_scale holds NaN or infinity"),
]


@pytest.mark.parametrize(("changes", "message"), DAMAGES)
def test_damaged_low_rank_parts_are_refused(tmp_path: Path, changes: dict[str, Tensor | None], message: str) -> None:
    tensors = damaged(**changes)
    header = {"format_version": 3, "task": "t", "backbone_digest": BACKBONE, "density": 0.0, "metadata": {}}
    save_file(tensors, tmp_path / "read", metadata={"overtone": json.dumps(header)})
    with pytest.raises(BundleError, match=message) as raised:
        read_expert(tmp_path / "read")
    assert str(raised.value).startswith(f"{tmp_path / 'read'}: ")
    assert "\n" not in str(raised.value)
    delta = LowRankDelta(*(tensors[f"w.{kind}"] for kind in ("lora_a", "lora_b", "lora_scale")))
    with pytest.raises(BundleError, match=message):
        write_expert(tmp_path / "written", expert({"w": delta}))
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_b": None}, "w.lora_a has no w.lora_b"),
        ({"lora_a": None}, "w.lora_b has no w.lora_a"),
        ({"lora_scale": None}, "w.lora_a has no w.lora_scale"),
        ({"lora_a": None, "lora_b": None}, "w.lora_scale has no w.lora_a"),
    ],
)
def test_the_three_tensors_belong_together(tmp_path: Path, changes: dict[str, Tensor | None], message: str) -> None:
    header = {"format_version": 3, "task": "t", "backbone_digest": BACKBONE, "density": 0.0, "metadata": {}}
    save_file(damaged(**changes), tmp_path / "e", metadata={"overtone": json.dumps(header)})
    with pytest.raises(BundleError, match=message):
        read_expert(tmp_path / "e")


@pytest.mark.parametrize("index", [[[0, 3]] * (ROWS - 1), [[0, COLUMNS]] * ROWS])
def test_both_parts_of_a_weight_have_one_shape(tmp_path: Path, index: list[list[int]]) -> None:
    part = SparseDelta(torch.tensor(index, dtype=torch.uint16), torch.ones(len(index), 2, dtype=torch.bfloat16))
    with pytest.raises(BundleError, match=r"w has a sparse part .* and a low-rank part for a \[6, 5\] weight"):
        write_expert(tmp_path / "e", expert({"w": factors()}, {"w": part}))
    write_expert(tmp_path / "good", expert({"w": factors()}, {"w": sparse()}))
    with safe_open(tmp_path / "good", "pt") as file:
        metadata = file.metadata()
    tensors = load_file(tmp_path / "good") | {"w.index": part.index, "w.value": part.value}
    save_file(tensors, tmp_path / "bad", metadata=metadata)
    with pytest.raises(BundleError, match=r"w has a sparse part .* and a low-rank part"):
        read_expert(tmp_path / "bad")
