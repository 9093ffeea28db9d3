"""Loading the C++ kernels and choosing the instruction set."""

from __future__ import annotations

import ctypes
import logging
import os
from dataclasses import dataclass
from functools import cache

from kernels.compiled.build import BuildError, build

logger = logging.getLogger(__name__)

ISAS = ("generic", "avx2", "avx512", "avx512bf16")
"""Instruction sets, by the numbers that `csrc/expert_linear.cpp` gives them; later ones are faster."""


class BankView(ctypes.Structure):
    """`Bank` of csrc/expert_linear.h."""

    _fields_ = (
        ("index", ctypes.c_void_p),
        ("value", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("blocks", ctypes.c_int64),
        ("entries", ctypes.c_int32),
        ("value_type", ctypes.c_int32),
    )


class BatchView(ctypes.Structure):
    """`Batch` of csrc/expert_linear.h."""

    _fields_ = (
        ("groups", ctypes.c_int32),
        ("slot", ctypes.c_void_p),
        ("start", ctypes.c_void_p),
        ("token", ctypes.c_void_p),
        ("gate", ctypes.c_void_p),
    )


ARGUMENTS = (
    *(ctypes.c_int,) * 4,  # isa, threads, type, add_to_y
    *(ctypes.c_int64,) * 3,  # tokens, rows, columns
    *(ctypes.c_void_p, ctypes.c_int64) * 2,  # x, weight and their strides
    *(ctypes.c_void_p,) * 2,  # bias, y
    *(ctypes.POINTER(BankView), ctypes.POINTER(BatchView)),
)


@dataclass(frozen=True)
class Library:
    """The loaded kernels.

    Attributes:
        handle: the shared library.
        isa: the instruction set to use, a number of `ISAS`.
    """

    handle: ctypes.CDLL
    isa: int

    def supports(self, isa: int) -> bool:
        """Whether this processor and this build have an instruction set."""
        return bool(self.handle.overtone_supports(isa))


@cache
def library() -> Library | None:
    """The kernels, built and loaded at the first call; None where `OVERTONE_COMPILED=0` or they cannot be built.

    `OVERTONE_ISA` forces one of `ISAS`; otherwise the best that the processor has is used.

    Raises:
        ValueError: `OVERTONE_ISA` is no instruction set, or not one that this processor has.
    """
    if os.environ.get("OVERTONE_COMPILED", "1") == "0":
        return None
    try:
        handle = ctypes.CDLL(str(build()))
    except (BuildError, OSError) as error:
        logger.warning("plain torch is used instead of the compiled kernels: %s", error)
        return None
    handle.overtone_expert_linear.argtypes = ARGUMENTS
    loaded = Library(handle, 0)
    available = [isa for isa in range(len(ISAS)) if loaded.supports(isa)]
    forced = os.environ.get("OVERTONE_ISA")
    if not forced:
        return Library(handle, available[-1])
    names = [ISAS[isa] for isa in available]
    if forced not in names:
        raise ValueError(f"OVERTONE_ISA is {forced!r}; this processor has {', '.join(names)}")
    return Library(handle, ISAS.index(forced))
