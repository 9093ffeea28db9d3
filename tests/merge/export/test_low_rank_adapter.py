"""Experts with low-rank parts as adapters and as dense checkpoints."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from merge.bundle import LowRankDelta, read_adapter
from merge.checkpoint import open_checkpoint
from merge.export import MissingRankError, export_adapter, export_dense
from merge.lora import open_adapter
from tests.merge.export.bundles import EMBEDDING, UP, WEIGHTS, Exported, factors, write
from tests.merge.export.test_adapter import PREFIX, products

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")

TOKENS = torch.tensor([[1, 5, 9, 13, 6, 2, 22]])
HEAD = "lm_head.weight"
Q = "model.layers.1.self_attn.q_proj.weight"
SHAPES = {EMBEDDING: (33, 32), HEAD: (33, 32), UP: (48, 32), WEIGHTS[1]: (48, 32), Q: (32, 32)}


def parts(
    ranks: Mapping[str, int], dtype: torch.dtype = torch.bfloat16, scale: float | None = None
) -> dict[str, LowRankDelta]:
    return {name: factors(*SHAPES[name], rank, dtype, seed, scale) for seed, (name, rank) in enumerate(ranks.items())}


def check_peft(made: Exported, adapter: Path) -> None:
    """The adapter on the backbone gives the logits of the expert in its weights."""
    peft = pytest.importorskip("peft")
    base = LlamaForCausalLM.from_pretrained(made.bundle.backbone_dir, dtype=torch.float32)
    plain = base(TOKENS).logits
    loaded = peft.PeftModel.from_pretrained(base, adapter)
    with torch.inference_mode():
        want = made.model(TOKENS).logits
        torch.testing.assert_close(loaded(TOKENS).logits, want, rtol=1e-5, atol=1e-5)
    assert (want - plain).abs().max() > 0.1, "the expert must matter"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8])
def test_ranks_that_differ_are_filled_up_to_one_and_peft_computes_the_same(dtype: torch.dtype, tmp_path: Path) -> None:
    made = write(tmp_path / "bundle", weights=(), norms=(), low_rank=parts({UP: 2, WEIGHTS[1]: 5, Q: 1}, dtype))
    report = export_adapter(made.bundle, "one", tmp_path / "out")
    assert (report.rank, report.error, report.lossless, report.dropped) == (5, 0.0, True, {})
    check_peft(made, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    # One rank and a factor of 1 for all: what reads no rank_pattern, as vLLM, is right, too.
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (5, 5, ["q_proj", "up_proj"])
    assert "rank_pattern" not in config
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    expert = made.bundle.read_expert("one")
    for name, delta in expert.low_rank.items():
        a = tensors[f"{PREFIX}{name.removesuffix('.weight')}.lora_A.weight"]
        assert a.shape == (5, delta.shape[1])
        assert torch.equal(a[: delta.rank].to(delta.a.dtype), delta.a)
        assert not a[delta.rank :].any()
    assert not tensors[f"{PREFIX}model.layers.0.self_attn.q_proj.lora_B.weight"].any()


def test_a_loras_factors_come_out_as_they_went_in(tmp_path: Path) -> None:
    """Alpha / r of a power of two changes no bit of B, and so the dtype stays."""
    made = write(tmp_path / "bundle", weights=(), norms=(), low_rank=parts({UP: 4, WEIGHTS[1]: 4}, scale=2.0))
    export_adapter(made.bundle, "one", tmp_path / "out", 4)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    delta = made.bundle.read_expert("one").low_rank[UP]
    a, b = (tensors[f"{PREFIX}{UP.removesuffix('.weight')}.lora_{key}.weight"] for key in "AB")
    assert (a.dtype, b.dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.equal(a, delta.a)
    assert torch.equal(b.float(), delta.b.float() * delta.scale)


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_and_heads(tied: bool, tmp_path: Path) -> None:
    """A tied embedding's part acts on the lookup and on the head."""
    ranks = {EMBEDDING: 3, UP: 2} if tied else {EMBEDDING: 3, UP: 2, HEAD: 4}
    made = write(tmp_path / "bundle", weights=(), norms=(), low_rank=parts(ranks), tied=tied)
    report = export_adapter(made.bundle, "one", tmp_path / "out")
    assert report.lossless
    assert set(report.layers) == set(ranks)
    check_peft(made, tmp_path / "out")


def test_with_a_sparse_part_the_sum_is_brought_to_the_rank(tmp_path: Path) -> None:
    """Weights without a sparse part keep their factors if the rank is sufficient for them."""
    made = write(tmp_path / "bundle", weights=(UP,), norms=(), low_rank=parts({UP: 2, WEIGHTS[1]: 3, Q: 6}))
    with pytest.raises(
        MissingRankError, match=f"needs a rank, as in --rank 16: expert 'one' has a sparse part in {UP}"
    ):
        export_adapter(made.bundle, "one", tmp_path / "out")
    report = export_adapter(made.bundle, "one", tmp_path / "out", 4)
    assert not report.lossless
    assert report.layers[WEIGHTS[1]] == 0
    assert min(report.layers[UP], report.layers[Q], report.error) > 0.05
    exact = made.bundle.read_expert("one").matrix(UP, 32)
    found = products(tmp_path / "out")[UP]
    assert report.layers[UP] == pytest.approx(float((exact - found).norm() / exact.norm()), abs=1e-4)
    whole = export_adapter(made.bundle, "one", tmp_path / "whole", 32)
    assert whole.error < 1e-5
    check_peft(made, tmp_path / "whole")


def test_a_dense_checkpoint_holds_both_parts(tmp_path: Path) -> None:
    low_rank = parts({UP: 2, Q: 3, EMBEDDING: 1})
    made = write(tmp_path / "bundle", low_rank=low_rank)
    report = export_dense(made.bundle, "one", tmp_path / "out")
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    for name, parameter in loaded.named_parameters():
        torch.testing.assert_close(parameter, dict(made.model.named_parameters())[name], rtol=1e-6, atol=1e-6)
    assert (report.dtype, report.rounding) == ("float32", 0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_the_adapter_is_read_back_as_the_same_expert(dtype: torch.dtype, tmp_path: Path) -> None:
    """By what `overtone serve --lora-modules` and a merge read adapters with."""
    made = write(
        tmp_path / "bundle",
        weights=(),
        norms=(),
        tied=False,
        low_rank=parts({EMBEDDING: 3, HEAD: 2, UP: 4, Q: 1}, dtype),
    )
    export_adapter(made.bundle, "one", tmp_path / "out")
    digest = made.bundle.manifest.backbone_digest
    _, served = read_adapter(tmp_path / "out", "one", digest)
    expert = made.bundle.read_expert("one")
    merged = open_adapter(tmp_path / "out", open_checkpoint(made.bundle.backbone_dir))
    exact = dict(made.model.named_parameters())
    for name, delta in expert.low_rank.items():
        torch.testing.assert_close(served.low_rank[name].dense(), delta.dense(), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(merged.tensor(name), exact[name].detach(), rtol=1e-6, atol=1e-6)
    untouched = set(served.low_rank) - set(expert.low_rank)
    assert all(not served.low_rank[name].dense().any() for name in untouched)
