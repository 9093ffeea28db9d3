from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from serve.model.slot_writer import SlotWriter, Write

META = torch.device("meta")


def writes(device: torch.device) -> list[Write]:
    """As an expert's: numbers of all sizes, values that lie in other orders, and parts that become empty."""
    values = [
        torch.arange(30).to(torch.uint16).view(2, 5, 3).permute(0, 2, 1),
        torch.arange(7).to(torch.int8),
        torch.randn(3, 4).to(torch.bfloat16),
        None,
        torch.randn(5),
    ]
    shapes = [(2, 3, 5), (7,), (3, 4), (6,), (5,)]
    dtypes = [torch.uint16, torch.int8, torch.bfloat16, torch.float32, torch.float32]
    made = []
    for value, shape, dtype in zip(values, shapes, dtypes, strict=True):
        made.append(Write(torch.ones(2, *shape, device=device).to(dtype)[1], value))
    return made


@pytest.mark.parametrize("stages", [False, True])
def test_every_part_arrives(stages: bool) -> None:
    writer = SlotWriter(torch.device("cpu"), stages)
    for _ in range(2):  # the second time in buffers that are there
        given = writes(torch.device("cpu"))
        writer.write(given)
        for one in given:
            want = torch.zeros_like(one.target) if one.values is None else one.values
            assert torch.equal(one.target.to(torch.float32), want.to(torch.float32))
    writer.write([Write(torch.ones(3), None)])


def test_an_expert_is_one_copy_from_the_host() -> None:
    crossed: list[str] = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            devices = {leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
            if len(devices) > 1:
                crossed.append(str(func))
            return func(*args, **(kwargs or {}))

    writer, given = SlotWriter(META), writes(META)
    with Copies():
        writer.write(given)
    assert crossed == ["aten.copy_.default"]


def test_loads_have_a_stream_of_their_own_and_wait_for_what_reads_the_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls of torch.cuda in their order, recorded without a GPU."""
    made: list[str] = []

    class Stream:
        def wait_stream(self, other: str) -> None:
            made.append(f"wait for {other}")

        def synchronize(self) -> None:
            made.append("done")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda: "the steps")
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext(made.append("loads")))
    writer = SlotWriter(torch.device("cuda:0"), stages=True)
    with writer._beside_the_steps():
        made.append("copies")
    assert made == ["wait for the steps", "loads", "copies", "done"]
