"""Captured steps over a backbone in 8 and 4 bits, as a GPU computes them."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels import on_gpu
from kernels.expert_linear import PackedWeight
from serve.engine.static_step import Bucket, StaticStep
from serve.model import Decoder, KvCache, ResidualBanks, load_model
from tests.kernels.expert_linear.test_packed_weight import packed
from tests.kernels.experts import random_rows
from tests.serve.conftest import random_model
from tests.serve.engine.conftest import META
from tests.serve.engine.replays import without_compiled_kernels
from tests.serve.engine.test_static_step import BLOCK, DeviceAlone, _chunk, _everything

pytest.importorskip("triton")


def step_of(decoder: Decoder, bucket: Bucket, logits: Tensor) -> StaticStep:
    cache = KvCache.allocate(decoder.config, 9, BLOCK, torch.float32, decoder.device, spare=True).with_spare
    assert cache is not None
    return StaticStep(bucket, decoder, cache, BLOCK, logits)


@pytest.mark.parametrize("storage", ["int8", "int4"])
@pytest.mark.parametrize("bucket", [Bucket(4, 16, 0), Bucket(64, 32, 1), Bucket(128, 16, 1)])
def test_a_step_reads_few_bits_without_the_host(
    bucket: Bucket, storage: str, launches: Counter[str], tmp_path: Path
) -> None:
    random_model(num_hidden_layers=2).save_pretrained(tmp_path)
    decoder = load_model(tmp_path, torch.float32, META, 256, storage)
    assert all(isinstance(p.part.layer.weight, PackedWeight) for p in decoder.placements.values() if len(p.shape) == 2)
    ResidualBanks(decoder, _everything(decoder), 5)
    with torch.inference_mode():
        step = step_of(decoder, bucket, torch.empty(bucket.sequences, 97, device=META))
        step.fill([_chunk(1, [0], (3,), (1.0,))])
        with DeviceAlone():
            step.compute()
    products = 4 * len(decoder.layers) + 1
    few = bucket.sequences <= 64
    found = {name: count for name, count in launches.items() if "packed" in name or "unpack" in name}
    if storage == "int8":
        assert found == {"packed_kernel_8" if few else "unpack_kernel_8": products}
    else:  # the embedding, which is the head as well, has 8 bits
        kernel = "packed_kernel" if few else "unpack_kernel"
        assert found == {f"{kernel}_4": products - 1, f"{kernel}_8": 1}
    assert launches["residual_kernel"] == products * bucket.experts


@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_the_kernels_of_a_gpu_give_the_logits_of_torch(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Triton's interpreter, in a model of one layer."""
    random_model(num_hidden_layers=1).save_pretrained(tmp_path)
    decoder = load_model(tmp_path, torch.float32, torch.device("cpu"), 64, storage)
    banks = ResidualBanks(decoder, _everything(decoder), 3)
    for bank in banks._banks.values():
        bank.load(1, *random_rows(bank.out_features, bank.in_features, 3, 1))
    logits = torch.empty(2, 97)
    step = step_of(decoder, Bucket(2, 16, 1), logits)
    found = {}
    for path in (False, True):
        monkeypatch.setattr(on_gpu, "runs_triton", lambda _, path=path: path)
        with without_compiled_kernels(), torch.inference_mode():
            step.fill([_chunk(0, [3]), _chunk(0, [8], (1,), (1.0,))])
            step.compute()
        found[path] = logits.clone()
    torch.testing.assert_close(*found.values(), rtol=1e-4, atol=1e-4)
    assert bool(found[False].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (17, 129), (35, 33), (48, 260)])
def test_a_weight_is_multiplied_out_to_the_same_numbers(
    rows: int, columns: int, bits: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, _ = packed(rows, columns, bits)
    want = weight.rows(torch.arange(rows)).to(dtype)
    monkeypatch.setattr(on_gpu, "runs_triton", lambda _: True)
    # Triton's interpreter truncates float32 to bfloat16, while a GPU rounds it.
    torch.testing.assert_close(weight.dequantised(dtype), want, rtol=2**-7 if dtype == torch.bfloat16 else 0, atol=0)
