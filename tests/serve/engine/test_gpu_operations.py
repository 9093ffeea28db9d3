"""What a layer of a step on a GPU consists of, counted on tensors without values: Triton's launches and torch's."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import on_gpu
from serve.engine.runner import Runner
from serve.engine.scheduler import Chunk
from serve.engine.static_step import Bucket, StaticStep
from serve.model import Decoder, KvCache, ResidualBanks, ResidualShape, read_config
from tests.serve.conftest import random_model
from tests.serve.engine.replays import SamePatching, without_compiled_kernels
from tests.serve.engine.test_static_step import META, _chunk

pytest.importorskip("triton")

LowRank = Literal["none", "alone", "too"]
"""Whether experts have low-rank parts: none, no others, or beside sparse ones."""

VIEWS = {
    *("view", "_unsafe_view", "select", "slice", "unsqueeze", "expand", "transpose", "t", "permute", "split"),
    *("split_with_sizes", "squeeze", "alias", "as_strided", "unbind", "detach", "reshape", "chunk", "lift_fresh"),
    *("flatten", "promote_types", "empty", "empty_like", "new_empty", "empty_strided"),
}
"""Operations that launch nothing."""


class Counted(TorchDispatchMode):
    """Counts operations of torch, and those that Triton's launches add to it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.split("::")[1]
        if name not in VIEWS:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, tuple[Any, ...]]]]:
    """Launches by kernel, with what Triton compiles another binary for; nothing is launched."""
    found: list[tuple[str, tuple[Any, ...]]] = []

    def launch(kernel: Any, grid: tuple[int, ...], *operands: Any, **constants: Any) -> None:
        key: list[str] = []
        unspecialised = kernel.kwargs["do_not_specialize"] or ()
        for name, operand in zip(kernel.arg_names, operands, strict=False):
            if isinstance(operand, torch.Tensor):
                key.append(str(operand.dtype))
            elif isinstance(operand, int) and name not in unspecialised:
                key.append("1" if operand == 1 else "16" if operand % 16 == 0 else "any")
        assert all(0 < size < 1 << 16 for size in grid[1:])
        found.append((kernel.__name__, (*key, *sorted(constants.items()))))

    monkeypatch.setattr(on_gpu, "launch", launch)
    monkeypatch.setattr(on_gpu, "runs_triton", lambda x: x.device == META)
    monkeypatch.setattr("kernels.attention.varlen.on_device", lambda device: device == META)
    with without_compiled_kernels():
        yield found


def decoder_of(path: Path, layers: int, deltas: bool, low_rank: LowRank, family: str) -> tuple[Decoder, KvCache]:
    model = random_model(family, num_hidden_layers=layers, hidden_size=64, intermediate_size=96, num_attention_heads=4)
    model.save_pretrained(path)
    decoder = Decoder(read_config(path), 1024, torch.bfloat16, META)
    shapes = {name: one.shape for name, one in decoder.placements.items() if name.startswith("model.layers.")}
    matrices = dict.fromkeys((name for name, shape in shapes.items() if len(shape) == 2), 3)
    vectors = frozenset(name for name, shape in shapes.items() if len(shape) == 1) if deltas else frozenset()
    entries = {} if low_rank == "alone" else matrices
    shape = ResidualShape(entries, vectors, ranks=matrices if low_rank != "none" else {})
    ResidualBanks(decoder, shape, 5)
    cache = KvCache.allocate(decoder.config, 80, 256, torch.bfloat16, META, spare=True)
    return decoder, cache


def _counts(
    path: Path, chunks: list[Chunk], launches: list[Any], captured: bool, **kind: Any
) -> tuple[float, Counter[str]]:
    """Operations of one layer more: a step of six layers less one of two, by four."""
    totals = []
    for layers in (2, 6):
        decoder, cache = decoder_of(path / str(layers), layers, **kind)
        launches.clear()
        with torch.inference_mode():
            if captured:
                assert cache.with_spare is not None
                bucket = Bucket(len(chunks), 512, 1)
                logits = torch.empty(len(chunks), 97, device=META, dtype=torch.bfloat16)
                step = StaticStep(bucket, decoder, cache.with_spare, 256, logits)
                step.fill(chunks)
                with Counted() as mode:
                    step.compute()
            else:
                runner = Runner(decoder, KvCache(cache.keys, cache.values), 256, SamePatching())  # type: ignore[arg-type]
                with Counted() as mode:
                    runner.run(chunks, [sum(chunk.count for chunk in chunks) - 1])
        totals.append(mode.found + Counter(f"triton {name}" for name, _ in launches))
    grown = totals[1] - totals[0]
    return sum(grown.values()) / 4, grown


def decoding(sequences: int) -> list[Chunk]:
    return [_chunk(5 + n, [n], (n % 5,), (1.0,)) for n in range(sequences)]


def prompts(sequences: int) -> list[Chunk]:
    return [_prompt(n) for n in range(sequences)]


def _prompt(number: int) -> Chunk:
    chunk = _chunk(20 + number, [number], (number % 5,), (1.0,))
    chunk.sequence.computed = 0
    return Chunk(chunk.sequence, 21 + number, True, True)


STEPS = {
    "captured": (lambda: decoding(8), True),
    "eager": (lambda: decoding(8), False),
    "prompts": (lambda: prompts(32), False),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("deltas", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_layer_is_few_operations(family: str, deltas: bool, step: str, launches: list[Any], tmp_path: Path) -> None:
    make, captured = STEPS[step]
    count, found = _counts(tmp_path, make(), launches, captured, family=family, deltas=deltas, low_rank="none")
    assert not any(name.startswith(("scaled_dot", "_scaled_dot", "index_select", "copy_")) for name in found), found
    assert found["_varlen_attn"] == 4
    assert found["triton sparse_kernel"] == found["addmm_"] == 16
    assert count == 13 + (deltas and family == "qwen2"), found


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("low_rank", ["alone", "too"])
def test_factors_take_no_launch_more_where_they_are_small(
    low_rank: LowRank, step: str, launches: list[Any], tmp_path: Path
) -> None:
    make, captured = STEPS[step]
    count, found = _counts(tmp_path, make(), launches, captured, family="llama", deltas=True, low_rank=low_rank)
    assert found["triton residual_kernel"] == found["addmm_"] == 16
    assert count == 13, found


def test_factors_that_many_programs_would_read_are_multiplied_before(
    launches: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernels.expert_linear.residual_triton.MOST_COLUMNS", 64)
    kind = {"family": "llama", "deltas": True, "low_rank": "alone"}
    count, found = _counts(tmp_path, decoding(8), launches, captured=True, **kind)
    # Of a layer's linears only down has more columns than that.
    assert (found["triton shrink_kernel"], found["triton residual_kernel"]) == (4, 16)
    assert count == 14, found


def test_few_binaries_are_compiled(launches: list[Any], tmp_path: Path) -> None:
    """Whatever the number of tokens, groups and experts, a kernel is compiled at most four times a kind of layer."""
    decoder, cache = decoder_of(tmp_path, 2, deltas=True, low_rank="too", family="llama")
    seen: dict[str, set[Any]] = {}
    with torch.inference_mode():
        for sequences in (1, 2, 3, 5, 8, 16, 17, 33, 64):
            runner = Runner(decoder, KvCache(cache.keys, cache.values), 256, SamePatching())  # type: ignore[arg-type]
            for chunks in (decoding(sequences), prompts(min(sequences, 20))):
                launches.clear()
                runner.run(chunks, [0])
                for name, key in launches:
                    seen.setdefault(name, set()).add(key)
    kinds = 4  # qkv, o, gate and up, down differ in shape
    assert {name: len(keys) for name, keys in seen.items() if len(keys) > 4 * kinds} == {}
    assert len(seen["add_norm_kernel"]) <= 4
    assert len(seen["rotary_kernel"]) <= 4
