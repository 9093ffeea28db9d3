"""Experts on their way into the slots: on a GPU in one copy from the host, beside the steps that are computed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

ALIGNMENT = 16
"""Bytes at multiples of which parts begin, which is enough for every dtype."""


@dataclass(frozen=True)
class Write:
    """What a part of a slot is to hold.

    Attributes:
        target: the part; changed.
        values: of its shape and dtype, on the host; None for zeros.
    """

    target: Tensor
    values: Tensor | None


class SlotWriter:
    """Writes slots of a device.

    On a CPU every part is copied by itself. On a GPU the parts of an expert are laid side by side in one pinned buffer
    on the host, which is kept, brought over in one copy, and put into their places on the device. All of it is on a
    separate stream, so that steps continue meanwhile. It begins after what was launched before, which may still read
    the slot's last expert, and a write returns when the slot is complete. Not for two threads at once.
    """

    def __init__(self, device: torch.device, stages: bool | None = None) -> None:
        """Make a writer.

        Args:
            device: of the slots.
            stages: whether an expert is brought over in one copy; None: on every device but a CPU.
        """
        self._device = device
        self._stages = device.type != "cpu" if stages is None else stages
        self._stream: torch.cuda.Stream | None = None
        self._host = torch.empty(0, dtype=torch.uint8)
        self._staged: Tensor | None = None

    def write(self, writes: Sequence[Write]) -> None:
        """Do all of them; those of one target in their order."""
        if not self._stages:
            for one in writes:
                one.target.zero_() if one.values is None else one.target.copy_(one.values)
            return
        given = [one.values for one in writes if one.values is not None]
        ends = list(accumulate(-(-values.nbytes // ALIGNMENT) * ALIGNMENT for values in given))
        staged = self._reserve(ends[-1] if ends else 0)
        starts = [0, *ends]
        for start, values in zip(starts, given, strict=False):
            _view(self._host, start, values).copy_(values)
        with self._beside_the_steps():
            if given:
                staged[: ends[-1]].copy_(self._host[: ends[-1]], non_blocking=True)
            begins = iter(starts)
            for one in writes:
                if one.values is None:
                    one.target.zero_()
                else:
                    one.target.copy_(_view(staged, next(begins), one.values))

    def _reserve(self, nbytes: int) -> Tensor:
        """Make the buffers large enough; the one on the device."""
        if self._staged is None or len(self._host) < nbytes:
            self._host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
            self._staged = torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        return self._staged

    @contextmanager
    def _beside_the_steps(self) -> Iterator[None]:
        """The stream of loads, after what the steps' stream has now; leaves when it is done."""
        if self._device.type != "cuda":
            yield
            return
        with torch.cuda.device(self._device):
            stream = self._stream = self._stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.default_stream())
            with torch.cuda.stream(stream):
                yield
            stream.synchronize()


def _view(buffer: Tensor, start: int, like: Tensor) -> Tensor:
    """A part of a buffer of bytes with the shape and dtype of another tensor."""
    return buffer[start : start + like.nbytes].view(like.dtype).view(like.shape)
