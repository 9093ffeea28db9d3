"""The C++ kernels: built on first use with the system's compiler, loaded through ctypes, optional everywhere."""

from kernels.compiled.arguments import Arguments
from kernels.compiled.library import (
    ISAS,
    TYPES,
    BankView,
    BatchView,
    Library,
    LowRankView,
    QuantisedView,
    elementwise,
    library,
)

__all__ = [
    "ISAS",
    "TYPES",
    "Arguments",
    "BankView",
    "BatchView",
    "Library",
    "LowRankView",
    "QuantisedView",
    "elementwise",
    "library",
]
