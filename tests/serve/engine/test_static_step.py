"""What is captured never asks the host: run with tensors that hold nothing, under a mode that sees every operation."""

import gc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels import on_gpu
from serve.engine import Request
from serve.engine.scheduler import Chunk
from serve.engine.sequence import Sequence
from serve.engine.static_step import Bucket, StaticStep
from serve.experts import ExpertVersion
from serve.experts.slots import Lease, Slot
from serve.model import Decoder, KvCache, ResidualBanks, ResidualShape, load_model, read_config
from tests.kernels.experts import random_rows
from tests.serve.conftest import greedy, random_low_rank, random_model
from tests.serve.engine.conftest import META
from tests.serve.engine.replays import without_compiled_kernels

pytest.importorskip("triton")

BLOCK = 4
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1},
    "qwen3": {"tie_word_embeddings": True},
    "smollm3": {"no_rope_layer_interval": 2},
    "gemma2": {"sliding_window": 11, "attn_logit_softcapping": 2.0},
}


class DeviceAlone(TorchDispatchMode):
    """Refuses what a capture would: tensors of the host, or that came from it; and what waits for the device.

    Whatever an operation reads must have been there before, on the device, or be another's result. That the values of
    a tensor are asked for, as `item`, `tolist`, `bool`, `nonzero` and masks as indices do, the device refuses itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known = [item for item in gc.get_objects() if issubclass(type(item), Tensor) and item.device == META]
        self._ids = {id(tensor) for tensor in self._known}
        self.operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.operations += 1
        for tensor in _tensors((args, kwargs)):
            if tensor.device != META:
                raise RuntimeError(f"{func} reads a tensor of the host")
            if id(tensor) not in self._ids:
                raise RuntimeError(f"{func} reads a tensor that came from the host")
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            if tensor.device != META:
                raise RuntimeError(f"{func} makes a tensor on the host")
            self._known.append(tensor)
            self._ids.add(id(tensor))
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize(
    "asks",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x[[0, 1]],
        lambda x: x + torch.tensor([1.0, 2.0], device=META),
        lambda x: x + torch.ones(2),
        lambda x: x + torch.ones(2).to(META),
        lambda x: x + torch.from_numpy(torch.ones(2).numpy()).to(META),
    ],
)
def test_the_trap_shuts(asks: Callable[[Tensor], object]) -> None:
    x = torch.ones(2, device=META)
    with DeviceAlone(), pytest.raises((RuntimeError, NotImplementedError)):
        asks(x)


def test_the_trap_lets_by_what_stays_on_the_device() -> None:
    x = torch.ones(2, device=META)
    with DeviceAlone() as mode:
        torch.where(x > 0, x * 2, 0)[torch.arange(2, device=META)] += x.view(1, 2)[0]
    assert mode.operations > 5


@pytest.mark.parametrize("bucket", [Bucket(1, 16, 0), Bucket(4, 16, 1), Bucket(32, 64, 0), Bucket(64, 32, 4)])
@pytest.mark.parametrize("family", MODELS)
def test_a_step_is_computed_without_the_host(
    family: str, bucket: Bucket, launches: Counter[str], tmp_path: Path
) -> None:
    model = random_model(family, **MODELS[family])
    model.save_pretrained(tmp_path)
    decoder = Decoder(read_config(tmp_path), 256, torch.float32, META)
    ResidualBanks(decoder, _everything(decoder), 5)
    cache = KvCache.allocate(decoder.config, 9, BLOCK, torch.float32, META, spare=True).with_spare
    assert cache is not None
    logits = torch.empty(bucket.sequences, 97, device=META)
    with torch.inference_mode():
        step = StaticStep(bucket, decoder, cache, BLOCK, logits)
        step.fill([_chunk(1, [0], (3,), (1.0,))])
        with DeviceAlone() as mode:
            step.compute()
    assert mode.operations > 10 * len(decoder.layers)
    # Four products a layer, and the head if it has a bank, or the embedding's.
    products = 4 * len(decoder.layers) + 1
    assert launches["residual_kernel"] == products * bucket.experts
    assert launches["sparse_kernel"] == launches["shrink_kernel"] == 0
    assert launches["rotary_kernel"] == launches["gated_kernel"] == len(decoder.layers)
    assert launches["add_norm_kernel"] > 2 * len(decoder.layers)


def test_the_kernels_of_a_gpu_are_right_at_every_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Triton's interpreter, which takes a second a step; the engine's tests have the products by torch."""
    random_model(num_hidden_layers=1).save_pretrained(tmp_path)
    decoder = load_model(tmp_path, torch.float32, torch.device("cpu"), 64)
    banks = ResidualBanks(decoder, _everything(decoder), 3)
    generator = torch.Generator().manual_seed(0)
    for slot in range(3):
        for bank in banks._banks.values():
            bank.load(slot, *random_rows(bank.out_features, bank.in_features, 3, slot))
        for low_rank in banks._low_rank.values():
            rank = 1 + slot % 2
            parts = [random_low_rank((one.rows, low_rank.in_features), rank, generator) for one in low_rank.segments]
            low_rank.load(slot, [(part.a, part.b, part.scale) for part in parts])
        for delta in banks._deltas.values():
            delta[slot] = 0.3 * torch.randn(delta.shape[1], generator=generator)
    cache = KvCache.allocate(decoder.config, 9, BLOCK, torch.float32, decoder.device, spare=True).with_spare
    assert cache is not None
    logits = torch.empty(4, 97)
    step = StaticStep(Bucket(4, 16, 2), decoder, cache, BLOCK, logits)
    first, second, third = _chunk(0, [3], (2, 0), (0.5, 2.0)), _chunk(0, [8]), _chunk(1, [3], (1,), (-1.0,))
    for chunks in ([first], [first, second], [third, second, _chunk(0, [5], (0,), (1.0,))]):
        found = {}
        for path in (False, True):
            monkeypatch.setattr(on_gpu, "runs_triton", lambda _, path=path: path)
            with without_compiled_kernels(), torch.inference_mode():
                step.fill(chunks)
                step.compute()
            found[path] = logits[: len(chunks)].clone()
        torch.testing.assert_close(*found.values(), rtol=1e-4, atol=1e-4)
        assert bool(found[False].isfinite().all())


def _everything(decoder: Decoder) -> ResidualShape:
    """An expert that changes every parameter, the 2-D ones by a sparse and a low-rank part."""
    shapes = {name: placement.shape for name, placement in decoder.placements.items()}
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    return ResidualShape(
        dict.fromkeys(matrices, 3),
        frozenset(name for name, shape in shapes.items() if len(shape) == 1),
        ranks=dict.fromkeys(matrices, 2),
    )


def test_inputs_arrive_and_other_rows_are_in_the_spare_block(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    decoder = Decoder(read_config(tmp_path), 256, torch.float32, torch.device("cpu"))
    cache = KvCache.allocate(decoder.config, 9, BLOCK, torch.float32, decoder.device, spare=True).with_spare
    assert cache is not None
    step = StaticStep(Bucket(4, 16, 2), decoder, cache, BLOCK, torch.empty(4, 97))
    step.fill([_chunk(9, [3, 1, 7], (2, 0), (0.5, 2.0)), _chunk(0, [8]), _chunk(4, [5, 6], (3,), (1.0,))])
    step.fill([_chunk(2, [4], (1,), (0.25,))])
    read = step._read
    assert read.tokens.tolist() == [52, 0, 0, 0]
    assert read.positions.tolist() == [2, 0, 0, 0]
    assert read.tables[:, 0].tolist() == [4, 9, 9, 9]
    assert read.experts is not None
    experts = read.experts()
    assert experts.slots.tolist() == [[1, -1], [-1, -1], [-1, -1], [-1, -1]]
    (group,) = (group for group in experts.groups if len(group.tokens))
    assert (group.slot, group.tokens.tolist(), group.gates.tolist()) == (1, [0], [0.25])
    # Each as aligned as a separate tensor, so that kernels are not compiled once more for it.
    assert all(part.data_ptr() % 16 == step._device.data_ptr() % 16 for part in (read.positions, experts.group_start))


def test_blocks_are_appended(tmp_path: Path) -> None:
    """What a row has of a sequence is not written again, unless the sequence lost its blocks and got others."""
    random_model().save_pretrained(tmp_path)
    decoder = Decoder(read_config(tmp_path), 256, torch.float32, torch.device("cpu"))
    cache = KvCache.allocate(decoder.config, 9, BLOCK, torch.float32, decoder.device, spare=True).with_spare
    assert cache is not None
    step = StaticStep(Bucket(2, 16, 0), decoder, cache, BLOCK, torch.empty(2, 97))
    chunk, other = _chunk(6, [3, 1]), _chunk(1, [7])
    step.fill([chunk, other])
    step._tables[0, 0] = 8
    chunk.sequence.blocks += [5]
    step.fill([chunk, other])
    assert step._read.tables[:, :3].tolist() == [[8, 1, 5], [7, 0, 0]]
    step.fill([other])
    step.fill([chunk])
    assert step._read.tables[0, :3].tolist() == [3, 1, 5]
    assert step._read.tables[1, 0].item() == 9
    chunk.sequence.blocks = [2, 4]
    step.fill([chunk])
    assert step._read.tables[0, :2].tolist() == [2, 4]


def _chunk(position: int, blocks: list[int], slots: tuple[int, ...] = (), gates: tuple[float, ...] = ()) -> Chunk:
    versions = [ExpertVersion(f"e{slot}", Path("e"), f"digest{number}", 0) for number, slot in enumerate(slots)]
    tokens = tuple(range(50, 51 + position))
    sequence = Sequence(Request("r", tokens, greedy(1)), tuple(zip(versions, gates, strict=True)), 0)
    sequence.computed, sequence.blocks = position, blocks
    if slots:
        sequence.lease = Lease(tuple(Slot(slot) for slot in slots))
    return Chunk(sequence, 1, True, False)
