"""How much of a GPU's memory the KV cache gets, with faked answers of torch.cuda."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from serve.engine import EngineConfig, build, memory
from serve.engine.memory import num_blocks, step_bytes
from serve.model import Decoder, load_model
from tests.serve.conftest import TinyBundle, engine_of, random_model

GIB = 1 << 30


class OnGpu:
    """As much of a decoder as is asked for how many blocks it gets."""

    device = torch.device("cuda")

    def kv_bytes_per_token(self) -> int:
        return 4096


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Decoder:
    """A decoder on a card of 140 GiB, of which 20 are taken, and whose largest step takes 4 more."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (120 * GIB, 140 * GIB))
    monkeypatch.setattr(memory, "step_bytes", lambda *_: 4 * GIB)
    return cast("Decoder", OnGpu())


def test_the_cache_gets_what_is_left_of_the_share(gpu: Decoder) -> None:
    config = EngineConfig(block_size=256, max_num_seqs=2048)
    blocks = num_blocks(gpu, config, 1 << 17)
    assert blocks == (int(140 * GIB * 0.9) - 20 * GIB - 4 * GIB) // (256 * 4096)
    assert (20 * GIB + blocks * 256 * 4096) / (140 * GIB) > 0.85
    half = EngineConfig(block_size=256, max_num_seqs=2048, gpu_memory_utilization=0.5)
    assert num_blocks(gpu, half, 1 << 17) == (70 - 24) * GIB // (256 * 4096)


def test_a_share_that_holds_no_sequence_is_named(gpu: Decoder) -> None:
    config = EngineConfig(block_size=256, gpu_memory_utilization=0.1)
    with pytest.raises(build.EngineError, match="lower max_model_len or raise gpu_memory_utilization"):
        num_blocks(gpu, config, 1 << 17)


@pytest.mark.parametrize("share", [0.0, 1.1, -0.5])
def test_a_share_is_a_part_of_the_whole(share: float) -> None:
    with pytest.raises(ValueError, match=f"gpu_memory_utilization is {share}; it must be above 0 and at most 1"):
        EngineConfig(gpu_memory_utilization=share)


def test_the_largest_step_is_computed_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_model(num_hidden_layers=1).save_pretrained(tmp_path)
    decoder = load_model(tmp_path, torch.float32, torch.device("cpu"), 64)
    seen: list[tuple[int, ...]] = []
    forward = Decoder.forward

    def spy(self: Decoder, batch: Any, cache: Any) -> Any:
        seen.append((len(batch.tokens), int(batch.positions.max()), *batch.attention[None].query_lens))
        return forward(self, batch, cache)

    monkeypatch.setattr(Decoder, "forward", spy)
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 350)
    assert step_bytes(decoder, EngineConfig(max_num_batched_tokens=100, block_size=16)) == 250
    assert seen == [(100, 63, 100)]


def test_blocks_are_as_large_as_the_attention_of_a_gpu_needs(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine_of(tiny.bundle).engine._runner._block_size == 4
    monkeypatch.setattr(build, "on_device", lambda _: True)
    assert engine_of(tiny.bundle).engine._runner._block_size == 256
    assert engine_of(tiny.bundle, block_size=257, kv_cache_bytes=1 << 22).engine._runner._block_size == 512
