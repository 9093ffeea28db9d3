import pytest
import torch
from torch import Tensor

from merge.bundle.quantised import (
    INT4,
    INT8,
    QuantisationError,
    Scheme,
    pack,
    packed_tensors,
    quantise,
    read_weight,
    stored_parts,
    unpack,
)

NAME = "model.layers.0.mlp.up_proj.weight"


def tensors(scheme: Scheme = INT4, rows: int = 3, columns: int = 70) -> dict[str, Tensor]:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    return packed_tensors(NAME, quantise(weight, scheme))


def test_packs_as_compressed_tensors_does() -> None:
    """Its documentation's own example: [1, 2] is [129, 130, 0, 0], the first in the lowest bits."""
    assert pack(torch.tensor([[1, 2]], dtype=torch.int8), 8).tolist() == [[129 | 130 << 8]]
    values = torch.tensor([[-8, -7, 0, 7, 1, 2, 3, 4, 5]], dtype=torch.int8)
    word = sum((int(v) + 8) << 4 * i for i, v in enumerate(values[0][:8]))
    assert pack(values, 4).tolist() == [[word - (1 << 32) if word >> 31 else word, 13]]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [1, 7, 8, 33])
def test_unpacks_what_it_packed(bits: int, columns: int) -> None:
    low, high = -(1 << (bits - 1)), 1 << (bits - 1)
    value = torch.randint(low, high, (5, columns), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    packed = pack(value, bits)
    assert packed.shape == (5, -(-columns * bits // 32))
    assert packed.dtype == torch.int32
    assert torch.equal(unpack(packed, bits, columns), value)


@pytest.mark.parametrize("scheme", [INT8, INT4, Scheme(4, 64), Scheme(8, 64), Scheme(4)])
@pytest.mark.parametrize("columns", [64, 70, 256])
def test_reads_back_what_was_stored(scheme: Scheme, columns: int) -> None:
    weight = quantise(torch.randn(3, columns, generator=torch.Generator().manual_seed(0)), scheme)
    found = read_weight(NAME, packed_tensors(NAME, weight).__getitem__, {scheme, Scheme(2)})
    assert torch.equal(found.dequantised(), weight.dequantised())


@pytest.mark.parametrize(
    ("part", "damage", "said"),
    [
        ("_scale", lambda t: t.fill_(float("nan")), "9 of 9 scales are not finite and positive"),
        ("_scale", lambda t: t.neg(), "9 of 9 scales are not finite and positive"),
        ("_scale", lambda t: t[:, :2], r"it must be floating \[3, 3\]"),
        ("_scale", lambda t: t[:2], r"it must be floating \[3, 3\]"),
        ("_scale", lambda t: t.to(torch.int32), r"it must be floating \[3, 3\]"),
        ("_packed", lambda t: t[:, :-1], "70 columns take 9 or 18 words a row"),
        ("_packed", lambda t: t[:-1], "says 3 rows of int32"),
        ("_packed", lambda t: t.to(torch.int64), "says 3 rows of int32"),
        ("_shape", lambda t: t[:1], "must be the two sizes of the weight"),
        ("_shape", lambda t: -t, "must be the two sizes of the weight"),
        ("_shape", lambda t: t.flip(0), "says 70 rows of int32"),
    ],
)
def test_refuses_damage_with_the_tensors_name(part: str, damage: object, said: str) -> None:
    stored = tensors()
    stored[NAME + part] = damage(stored[NAME + part])  # type: ignore[operator]
    with pytest.raises(QuantisationError, match=said) as error:
        read_weight(NAME, stored.__getitem__, {INT4, INT8})
    assert NAME in str(error.value)


def test_refuses_scales_of_another_group_than_the_configurations() -> None:
    with pytest.raises(QuantisationError, match=r"weight_scale is .* \[3, 3\]; it must be floating \[3, 2\]"):
        read_weight(NAME, tensors(INT4).__getitem__, {Scheme(4, 64), INT8})


def test_finds_the_quantised_weights() -> None:
    assert stored_parts({*tensors(), "model.norm.weight"}) == {NAME}
    for part in ("_scale", "_shape", "_packed"):
        with pytest.raises(QuantisationError, match=NAME.replace(".", r"\.")):
            stored_parts(set(tensors()) - {NAME + part})
    with pytest.raises(QuantisationError, match="zero points"):
        stored_parts({*tensors(), NAME + "_zero_point"})
