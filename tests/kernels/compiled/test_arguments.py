"""The structs that Python packs are those of csrc/kernels.h, field by field."""

import ctypes
import re
from importlib import import_module

import pytest

from kernels.compiled import Arguments, BankView, BatchView, LowRankView, QuantisedView, library
from kernels.compiled.build import INTERFACE, SOURCES
from kernels.sampling.compiled import ROW

MODULES = (
    *(
        "kernels.patch",
        "kernels.gated",
        "kernels.expert_norm",
        "kernels.attention.compiled",
        "kernels.attention.rotary",
    ),
    *("kernels.expert_linear.compiled", "kernels.expert_linear.packed_weight", "kernels.decoder.compiled"),
    "kernels.rounding",
    "kernels.sampling.compiled",
)
FOUND = {
    value.function: value
    for module in MODULES
    for value in vars(import_module(module)).values()
    if isinstance(value, Arguments)
}
HEADER = re.sub(r"//.*", "", (SOURCES / "kernels.h").read_text())
EXPORTED = dict(
    found.groups()
    for name in INTERFACE
    for found in re.finditer(r"OVERTONE_FUNCTION\((\w+), (\w+), \w+\)", (SOURCES / name).read_text())
)


def fields(struct: str) -> list[str]:
    """The fields of a struct, as `Arguments` takes them, and `name:i` for 32 bits."""
    (body,) = re.findall(rf"^struct {struct} {{(.*?)^}};", HEADER, re.DOTALL | re.MULTILINE)
    found = []
    for declaration in filter(None, map(str.strip, body.split(";"))):
        kind, names = re.fullmatch(r"(?:const )?(\w+)(?:\*)? (.*)", declaration).groups()
        pointer = "*" in declaration
        suffix = {"double": ":d", "int32_t": ":i"}.get(kind, "") if not pointer else ""
        found += [f"{name.strip()}{suffix}" for name in names.split(",")]
    return found


def test_every_function_of_the_library_is_known():
    assert set(FOUND) == set(EXPORTED)


@pytest.mark.parametrize("function", sorted(EXPORTED))
def test_the_fields_are_those_of_the_header(function: str):
    arguments = FOUND[function]
    letters = dict(zip(arguments._names, arguments._struct.format[3:], strict=True))
    given = [f"{name}:d" if letters[name] == "d" else name for name in arguments._names]
    assert ["isa", "threads", *given] == fields(EXPORTED[function])


def test_the_fields_of_a_row_to_sample_are_those_of_the_header():
    letters = "".join(int(count or 1) * letter for count, letter in re.findall(r"(\d*)([qd])", ROW.format))
    assert letters == "".join("d" if field.endswith(":d") else "q" for field in fields("SamplingRow"))


@pytest.mark.parametrize(
    ("view", "struct"),
    [(BankView, "Bank"), (LowRankView, "LowRank"), (QuantisedView, "Quantised"), (BatchView, "Batch")],
)
def test_the_fields_of_a_view_are_those_of_the_header(view: type[ctypes.Structure], struct: str):
    assert [f"{name}:i" if kind is ctypes.c_int32 else name for name, kind in view._fields_] == fields(struct)


def test_rows_to_sample_and_layers_have_the_sizes_of_the_header():
    loaded = library()
    if loaded is None:
        pytest.skip("no compiler here")
    assert loaded.handle.overtone_SamplingRow_bytes() == ROW.size
    norms, linears = 6 * len(fields("NormWeights")), 4 * len(fields("LinearWeights"))
    assert loaded.handle.overtone_Layer_bytes() == 8 * (norms + linears + len(("keys", "values", "view", "rotation")))


def test_a_field_that_is_missing_or_unknown_is_named():
    arguments = Arguments("it", "type eps:d")
    assert len(arguments.pack(0, 1, {"type": 1, "eps": 0.5})) == arguments.nbytes == 32
    with pytest.raises(TypeError, match="the fields of it's arguments do not match: eps, spe"):
        arguments.pack(0, 1, {"type": 1, "spe": 0.5})
    with pytest.raises(TypeError, match="do not match: more"):
        arguments.pack(0, 1, {"type": 1, "eps": 0.5, "more": 0})


def test_a_struct_of_another_size_is_refused():
    loaded = library()
    if loaded is None:
        pytest.skip("no compiler here")
    with pytest.raises(RuntimeError, match="overtone_gated takes 72 bytes of arguments, and Python packs 24"):
        type(loaded)(loaded.handle, 0).call(Arguments("gated", "type"), type=0)
