"""A GPU that is not there: tensors that say they are on `cuda:0`, computed by the processor.

As on a GPU, an operation refuses tensors of different devices, except numbers. So a merge that passes here copies
everything that it computes with to the device, and gives the bits that it gives on the processor.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from merge import parallel

GPU = torch.device("cuda", 0)
COPIES = {"_to_copy", "copy_", "copy"}


class _There(torch.Tensor):
    """A tensor on the pretended GPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "_There":
        # Below Python it is a tensor of the meta device, for which torch needs no driver.
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device="meta",
        )  # fmt: skip
        made.inner = inner
        return made  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        return _There(self.inner)

    @data.setter
    def data(self, other: "_There") -> None:
        self.inner = other.inner

    def detach(self) -> torch.Tensor:
        return _There(self.inner)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"on {GPU}: {self.inner!r}"

    def __bool__(self) -> bool:
        return bool(self.inner)

    def __float__(self) -> float:
        return float(self.inner)

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __int__(self) -> int:
        return int(self.inner)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} outside of pretended_gpu")


class _Mode(TorchDispatchMode):
    """Computes what is on the GPU; `done` counts it. `meta`: Python asks for a tensor of the meta device just now."""

    def __init__(self) -> None:
        super().__init__()
        self.done: Counter[str] = Counter()
        self.meta = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), func.overloadpacket.__name__
        tensors: list[torch.Tensor] = []
        _mapped(lambda item: tensors.append(item) if isinstance(item, torch.Tensor) else None, (args, kwargs))
        there = any(isinstance(item, _There) for item in tensors)
        if there and name not in COPIES:
            mixed = [tuple(item.shape) for item in tensors if not isinstance(item, _There) and item.ndim]
            if mixed:
                raise RuntimeError(f"{func}: expected all tensors on one device, {mixed} are on the processor")
            self.done[name] += 1
        wanted = kwargs.get("device")
        if wanted is not None and wanted.type == "meta" and not self.meta:
            wanted = kwargs["device"] = GPU  # torch's own code, for a tensor beside one that is there
        to_gpu = (there if wanted is None else wanted.type == "cuda") and name != "scalar_tensor"
        found = func(*_mapped(_inner, args), **_mapped(_inner, kwargs))
        if name == "copy_":
            return args[0]
        known = {id(item.inner): item for item in tensors if isinstance(item, _There)}  # in place, and `out=`

        def outer(item: Any) -> Any:
            if not isinstance(item, torch.Tensor) or isinstance(item, _There) or not to_gpu:
                return item
            return known[id(item)] if id(item) in known else _There(item)

        return _mapped(outer, found)


class _Made(TorchFunctionMode):
    """Has `torch.tensor`, which asks no dispatch mode, make its tensors on the processor and copy them."""

    def __init__(self, mode: _Mode) -> None:
        super().__init__()
        self._mode = mode

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == "cuda":
            return torch.tensor(*args, **{**kwargs, "device": "cpu"}).to(GPU)
        named = [item for item in (*args[1:], kwargs.get("device")) if isinstance(item, str | torch.device)]
        before, self._mode.meta = self._mode.meta, any(str(item) == "meta" for item in named)
        try:
            return func(*args, **kwargs)
        finally:
            self._mode.meta = before


def _mapped(function: Callable[[Any], Any], item: Any) -> Any:
    """What `torch.utils._pytree.tree_map` gives for the arguments and results of operations, and faster."""
    if isinstance(item, dict):
        return {key: _mapped(function, value) for key, value in item.items()}
    if isinstance(item, tuple | list):
        return type(item)(_mapped(function, value) for value in item)
    return function(item)


def _inner(item: Any) -> Any:
    if isinstance(item, torch.device) and item.type == "cuda":
        return torch.device("cpu")
    return item.inner if isinstance(item, _There) else item


class _Inline(Executor):
    """Does at once what it is given."""

    def __init__(self, _workers: int) -> None:
        """Take the number of workers that it does not have."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@contextmanager
def pretended_gpu(monkeypatch: pytest.MonkeyPatch, free: int = 8 << 30) -> Iterator[Counter[str]]:
    """Have a GPU for the length of a block.

    Args:
        monkeypatch: of the test.
        free: bytes of its memory.

    Yields:
        How often each operation was computed on it.
    """
    with monkeypatch.context() as patch, _Mode() as mode, _Made(mode):
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU that is not there")
        patch.setattr(torch.cuda, "mem_get_info", lambda _: (free, free))
        patch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
        patch.setattr(parallel, "ThreadPoolExecutor", _Inline)  # a dispatch mode is that of one thread
        yield mode.done
