"""The C++ kernels: built on first use with the system's compiler, loaded through ctypes, optional everywhere."""

from kernels.compiled.library import ISAS, BankView, BatchView, Library, library

__all__ = ["ISAS", "BankView", "BatchView", "Library", "library"]
