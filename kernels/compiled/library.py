"""Loading the C++ kernels and choosing the instruction set."""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from kernels.compiled.arguments import Arguments
from kernels.compiled.build import BuildError, build

logger = logging.getLogger(__name__)

ISAS = ("generic", "avx2", "avx512", "avx512bf16", "amx")
"""Instruction sets, by the numbers that `csrc/choice.cpp` gives them; later ones are faster."""


class BankView(ctypes.Structure):
    """`Bank` of csrc/kernels.h."""

    _fields_ = (
        ("index", ctypes.c_void_p),
        ("value", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("blocks", ctypes.c_int64),
        ("entries", ctypes.c_int32),
        ("value_type", ctypes.c_int32),
    )


class LowRankView(ctypes.Structure):
    """`LowRank` of csrc/kernels.h."""

    _fields_ = (
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("ranks", ctypes.c_void_p),
        ("segment", ctypes.c_void_p),
        ("segments", ctypes.c_int64),
        ("directions", ctypes.c_int64),
        ("elements", ctypes.c_int64),
        ("value_type", ctypes.c_int64),
    )


class QuantisedView(ctypes.Structure):
    """`Quantised` of csrc/kernels.h."""

    _fields_ = (("data", ctypes.c_void_p), ("scale", ctypes.c_void_p), ("bits", ctypes.c_int64))


class BatchView(ctypes.Structure):
    """`Batch` of csrc/kernels.h."""

    _fields_ = (
        ("groups", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("slot", ctypes.c_void_p),
        ("start", ctypes.c_void_p),
        ("token", ctypes.c_void_p),
        ("gate", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("gates", ctypes.c_void_p),
    )


STRUCTS: Mapping[str, type[ctypes.Structure]] = {
    "Bank": BankView,
    "LowRank": LowRankView,
    "Quantised": QuantisedView,
    "Batch": BatchView,
}
"""Struct of csrc/kernels.h → the structure that Python fills."""

TYPES = {torch.bfloat16: 0, torch.float32: 1, torch.int8: 2}
"""`Type` of csrc/kernels.h."""

FLOATS = frozenset({torch.bfloat16, torch.float32})
"""Types of the layers that the kernels compute on."""


@dataclass(frozen=True)
class Library:
    """The loaded kernels.

    Attributes:
        handle: the shared library.
        isa: the instruction set to use, a number of `ISAS`.
        functions: the functions that were called already, by their names.
    """

    handle: ctypes.CDLL
    isa: int
    functions: dict[str, Callable[[bytes], int]] = field(default_factory=dict)

    def call(self, arguments: Arguments, **given: float) -> int:
        """Call a kernel with this instruction set on torch's number of threads.

        Args:
            arguments: its struct.
            given: all fields of the struct but the first two, which are the instruction set and the threads.

        Returns:
            0, or what the function's comment says.

        Raises:
            MemoryError: no memory for what the kernel keeps meanwhile.
            IndexError: a place or a block is outside the cache.
            RuntimeError: the struct has another size in C++.
        """
        function = self.functions.get(arguments.function) or self._load(arguments)
        failed = function(arguments.pack(self.isa, torch.get_num_threads(), given))
        if failed == 1:
            raise MemoryError(f"no memory for {arguments.function}")
        if failed == 2:
            raise IndexError(f"{arguments.function} was given a place outside the cache")
        return failed

    def _load(self, arguments: Arguments) -> Callable[[bytes], int]:
        """Look a function up, once it is certain that it takes this struct."""
        name = f"overtone_{arguments.function}"
        nbytes = int(getattr(self.handle, f"{name}_bytes")())
        if nbytes != arguments.nbytes:
            raise RuntimeError(f"{name} takes {nbytes} bytes of arguments, and Python packs {arguments.nbytes}")
        function: Any = getattr(self.handle, name)
        function.argtypes = (ctypes.c_char_p,)
        self.functions[arguments.function] = function
        return function  # type: ignore[no-any-return]

    def supports(self, isa: int) -> bool:
        """Whether this processor and this build have an instruction set."""
        return bool(self.handle.overtone_supports(isa))


def load(path: Path) -> ctypes.CDLL:
    """Load a library that `build` made.

    Raises:
        BuildError: it was built from other sources than its name says, or its structs have other sizes than Python's.
        OSError: it cannot be loaded.
    """
    handle = ctypes.CDLL(str(path))
    try:
        handle.overtone_build.restype = ctypes.c_char_p
        found = handle.overtone_build().decode()
        sizes = {name: int(getattr(handle, f"overtone_{name}_bytes")()) for name in STRUCTS}
    except AttributeError as error:
        raise BuildError(f"{path} is not a library of these kernels; delete it: {error}") from error
    if path.stem != f"kernels-{found}":
        raise BuildError(f"{path} contains the build {found}; delete it, and it is built again")
    for name, structure in STRUCTS.items():
        if sizes[name] != ctypes.sizeof(structure):
            raise BuildError(f"{name} has {sizes[name]} bytes in C++ and {ctypes.sizeof(structure)} in Python")
    return handle


@cache
def library() -> Library | None:
    """The kernels, built and loaded at the first call; None if `OVERTONE_COMPILED=0` or they cannot be built.

    `OVERTONE_ISA` forces one of `ISAS`; otherwise the best that the processor has is used.

    Raises:
        ValueError: `OVERTONE_ISA` is not an instruction set of this processor.
    """
    if os.environ.get("OVERTONE_COMPILED", "1") == "0":
        return None
    try:
        handle = load(build())
    except (BuildError, OSError) as error:
        logger.warning("plain torch is used instead of the compiled kernels: %s", error)
        return None
    loaded = Library(handle, 0)
    available = [isa for isa in range(len(ISAS)) if loaded.supports(isa)]
    forced = os.environ.get("OVERTONE_ISA")
    if not forced:
        return replace(loaded, isa=available[-1])
    names = [ISAS[isa] for isa in available]
    if forced not in names:
        raise ValueError(f"OVERTONE_ISA is {forced!r}; this processor has {', '.join(names)}")
    return replace(loaded, isa=ISAS.index(forced))


def elementwise(*tensors: torch.Tensor) -> Library | None:
    """The kernels if they can compute on these tensors: all bf16 or all fp32, on the CPU."""
    dtype = tensors[0].dtype
    if dtype not in FLOATS or any(tensor.dtype != dtype or tensor.device.type != "cpu" for tensor in tensors):
        return None
    return library()
