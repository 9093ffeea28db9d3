import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from merge.bundle import (
    BundleError,
    Expert,
    GenerationSettings,
    MissingFileError,
    SparseDelta,
    TemplateText,
    expert_bytes,
    expert_digest,
    quantise_rows,
    read_expert,
    read_layout,
    write_expert,
)

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
    assert expert_bytes(tmp_path / "roman.safetensors") == 5 * 3 * 4 + 7 * 4
    assert read.nnz == 5 * 3 + 7
    assert list(tmp_path.iterdir()) == [tmp_path / "roman.safetensors"]


def test_settings_of_generation_come_back_in_a_newer_format(tmp_path: Path) -> None:
    path = tmp_path / "roman.safetensors"
    template = TemplateText("{{ bos_token }}{{ messages }}", {"bos_token": "<s>"}, "tools")
    settings = GenerationSettings((2, 7), template, {"temperature": 0.6})
    write_expert(path, replace(make_expert(), settings=settings))
    assert read_expert(path).settings == read_layout(path).settings == settings
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["overtone"])["format_version"] == 4
    write_expert(path, make_expert())
    assert read_expert(path).settings == read_layout(path).settings == GenerationSettings()
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["overtone"])
    assert header["format_version"] == 1
    assert "generation" not in header
    with pytest.raises(MissingFileError):
        read_layout(tmp_path / "gone.safetensors")


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
        (broken([[]], [[]]), "at least one row of one entry"),
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
        ({"w": torch.zeros(1)}, {"format_version": 4, "generation": {"eos_token_id": 3}}, "damaged expert header"),
        ({"w.other": torch.zeros(1)}, {"format_version": 1}, "not part of an expert"),
        ({"w.index": torch.zeros(1, 1, dtype=torch.uint16)}, {"format_version": 1}, "has no w.value"),
        ({"w.value": torch.zeros(1, 1)}, {"format_version": 1}, "'w.value' is not part"),
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


def quantised(rows: int = 64, columns: int = 900, entries: int = 9, seed: int = 0) -> SparseDelta:
    gen = torch.Generator().manual_seed(seed)
    index = torch.rand(rows, columns, generator=gen).topk(entries, 1).indices.sort(1).values
    return SparseDelta(index.to(torch.uint16), *quantise_rows(torch.randn(rows, entries, generator=gen)))


def test_eight_bit_values_take_two_bytes_an_entry_and_come_back_exactly(tmp_path: Path) -> None:
    path, delta = tmp_path / "e.safetensors", quantised()
    write_expert(path, replace(make_expert(), sparse={"w": delta}, dense={}))
    read = read_expert(path, BACKBONE).sparse["w"]
    assert read.scale is not None
    assert delta.scale is not None
    assert torch.equal(read.scale, delta.scale)
    assert torch.equal(read.dense(900), delta.dense(900))
    entries = 64 * 9
    assert expert_bytes(path) <= 2 * 1.15 * entries + 2 * 64
    layout = read_layout(path)
    assert (layout.entries, layout.quantised, layout.dense) == ({"w": 9}, {"w"}, set())


def test_where_gaps_are_long_the_columns_stay_as_they_are(tmp_path: Path) -> None:
    path, delta = tmp_path / "e.safetensors", quantised(columns=40_000, entries=4)
    write_expert(path, replace(make_expert(), sparse={"w": delta}, dense={}))
    read = read_expert(path).sparse["w"]
    assert torch.equal(read.index, delta.index)
    assert torch.equal(read.dense(40_000), delta.dense(40_000))
    assert expert_bytes(path) == 64 * (4 * 3 + 2)


def test_an_eight_bit_expert_may_have_empty_rows(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    value = torch.zeros(4, 2)
    value[2] = torch.tensor([1.0, -0.5])
    delta = SparseDelta(torch.tensor([[0, 1], [3, 3], [5, 700], [8, 9]], dtype=torch.uint16), *quantise_rows(value))
    write_expert(path, replace(make_expert(), sparse={"w": delta}))
    assert torch.equal(read_expert(path).sparse["w"].dense(701), delta.dense(701))


def test_files_with_bfloat16_values_keep_their_version(tmp_path: Path) -> None:
    for name, delta, version in (("a", make_expert().sparse["layer.weight"], 1), ("b", quantised(), 2)):
        write_expert(tmp_path / name, replace(make_expert(), sparse={"w": delta}))
        with safe_open(tmp_path / name, "pt") as file:
            assert json.loads(file.metadata()["overtone"])["format_version"] == version


def eight_bit_file(path: Path, gaps: object = None, **changes: torch.Tensor | None) -> Path:
    tensors: dict[str, torch.Tensor | None] = {
        "w.gap": torch.tensor([3, 255, 40, 200], dtype=torch.uint8),
        "w.value": torch.tensor([5, 0, 7, -9], dtype=torch.int8),
        "w.scale": torch.tensor([0.5, 2.0], dtype=torch.bfloat16),
        **{f"w.{name}": tensor for name, tensor in changes.items()},
    }
    header = {
        "format_version": 2, "task": "t", "backbone_digest": BACKBONE, "density": 0.1, "metadata": {},
        "gaps": {"w": {"width": 300, "entries": 2}} if gaps is None else gaps,
    }  # fmt: skip
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, path, metadata={"overtone": json.dumps(header)})
    return path


def test_distances_over_255_pass_over_fillers(tmp_path: Path) -> None:
    delta = read_expert(eight_bit_file(tmp_path / "e")).sparse["w"]
    assert delta.index.tolist() == [[3, 298], [198, 198]]
    assert delta.numbers.tolist() == [[2.5, 3.5], [-18.0, 0.0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gap": torch.tensor([3, 255, 0, 200], dtype=torch.uint8)}, "w: two entries have the same column"),
        ({"gap": torch.tensor([255, 255, 255, 255], dtype=torch.uint8)}, "outside a matrix of 2 rows and 300 columns"),
        ({"gap": torch.tensor([3, 4], dtype=torch.uint8)}, r"uint8 \[2\] and .value torch.int8 \[4\]"),
        ({"gap": torch.tensor([3, 255, 40, 200], dtype=torch.int16)}, "must be uint8 and int8"),
        ({"value": torch.tensor([5, 1, 7, -9], dtype=torch.int8)}, "row 0 has 3 entries; the header says 2"),
        ({"value": None}, "has no w.value"),
        ({"scale": None}, "has no .scale"),
        ({"scale": torch.tensor([0.5, 0.0], dtype=torch.bfloat16)}, "not finite and positive"),
        ({"scale": torch.tensor([float("nan"), 1.0], dtype=torch.bfloat16)}, "not finite and positive"),
        ({"scale": torch.tensor([0.5, -1.0], dtype=torch.bfloat16)}, "not finite and positive"),
        ({"scale": torch.tensor([0.5, 1.0])}, "must be bfloat16"),
        ({"scale": torch.ones(2, 1, dtype=torch.bfloat16)}, "1-D"),
        ({"scale": torch.ones(0, dtype=torch.bfloat16)}, "0 rows"),
        ({"gaps": {}}, "has no entry in the header"),
        ({"gaps": {"w": {"width": 300}}}, "damaged expert header: KeyError"),
        ({"gaps": {"w": {"width": 1, "entries": 2}}}, "2 rows of 1 columns and 2 entries"),
        ({"index": torch.zeros(2, 2, dtype=torch.uint16)}, r"w.index is \[2, 2\] and .value \[4\]"),
    ],
)
def test_damaged_eight_bit_residuals_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = eight_bit_file(tmp_path / "e", **changes)
    with pytest.raises(BundleError, match=message) as raised:
        read_expert(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("scale", [torch.ones(3, dtype=torch.bfloat16), torch.ones(2), None])
def test_int8_values_need_a_scale_for_each_row(tmp_path: Path, scale: torch.Tensor | None) -> None:
    delta = SparseDelta(torch.zeros(2, 1, dtype=torch.uint16), torch.ones(2, 1, dtype=torch.int8), scale)
    with pytest.raises(BundleError, match="scale"):
        write_expert(tmp_path / "e", replace(make_expert(), sparse={"w": delta}))


def test_a_header_alone_cannot_be_read_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "e").write_text("no safetensors")
    with pytest.raises(BundleError, match="not a readable"):
        read_layout(tmp_path / "e")
