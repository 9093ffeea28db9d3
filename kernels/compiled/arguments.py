"""The arguments of a compiled kernel: a struct of csrc/kernels.h by the names of its fields."""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct


class Arguments:
    """A struct whose fields all have 8 bytes, after the instruction set and the number of threads.

    Packing such a struct costs less than converting as many arguments by ctypes.

    Attributes:
        function: the kernel that takes the struct, without the prefix `overtone_`.
        nbytes: size of the struct.
    """

    def __init__(self, function: str, fields: str) -> None:
        """Describe a struct.

        Args:
            function: the kernel.
            fields: names in the order of the struct, with blanks between them; `name:d` is a double, all others are
                64-bit integers and addresses.
        """
        self.function = function
        named = [field.partition(":") for field in fields.split()]
        self._names = tuple(name for name, _, _ in named)
        self._struct = Struct("=2q" + "".join(kind or "q" for _, _, kind in named))
        self.nbytes = self._struct.size

    def pack(self, isa: int, threads: int, given: Mapping[str, float]) -> bytes:
        """The struct with these values.

        Raises:
            TypeError: a field has no value, or a name is not a field.
        """
        try:
            values = [given[name] for name in self._names]
        except KeyError:
            values = []
        if len(values) != len(given):
            wrong = sorted(set(self._names) ^ set(given))
            raise TypeError(f"the fields of {self.function}'s arguments do not match: {', '.join(wrong)}")
        return self._struct.pack(isa, threads, *values)
