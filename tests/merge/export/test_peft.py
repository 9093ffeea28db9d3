"""Exported adapters, loaded by PEFT itself, if it is installed."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from merge.export import export_adapter
from tests.merge.export.bundles import WEIGHTS, write

peft = pytest.importorskip("peft")
# PEFT's own use of what transformers deprecates is not this project's to mend.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

TOKENS = torch.tensor([[1, 5, 9, 13, 6, 8]])


@pytest.mark.parametrize("rank", [32, 6])
def test_with_its_norms_an_adapter_of_full_rank_is_the_task(tmp_path: Path, rank: int) -> None:
    made = write(tmp_path / "bundle")
    report = export_adapter(made.bundle, "one", tmp_path / "out", rank, norms=True)
    base = LlamaForCausalLM.from_pretrained(made.bundle.backbone_dir)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    with torch.inference_mode():
        got, want = loaded(TOKENS).logits, made.model(TOKENS).logits
    if rank == 32:
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    else:
        assert float((got - want).abs().max()) > 1e-2
    merged = loaded.merge_and_unload()
    exact, lost, size = dict(made.model.named_parameters()), 0.0, 0.0
    backbone = dict(LlamaForCausalLM.from_pretrained(made.bundle.backbone_dir).named_parameters())
    for name, parameter in merged.named_parameters():
        if name in WEIGHTS:
            lost += float((parameter.detach() - exact[name]).square().sum())
            size += float((exact[name] - backbone[name].detach()).square().sum())
        else:
            torch.testing.assert_close(parameter, exact[name])
    assert (lost / size) ** 0.5 == pytest.approx(report.error, abs=1e-4)


def test_without_them_the_norms_are_the_backbones(tmp_path: Path) -> None:
    made = write(tmp_path / "bundle")
    export_adapter(made.bundle, "one", tmp_path / "out", 32)
    base = LlamaForCausalLM.from_pretrained(made.bundle.backbone_dir)
    backbone = {name: parameter.clone() for name, parameter in base.named_parameters()}
    merged = peft.PeftModel.from_pretrained(base, tmp_path / "out").merge_and_unload()
    for name, parameter in merged.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, backbone[name])
