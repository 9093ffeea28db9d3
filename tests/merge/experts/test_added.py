from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from merge.bundle import backbone_digest
from merge.checkpoint import open_checkpoint
from merge.experts import ExpertConfig, Sources, cut_expert
from merge.experts.added import added
from tests.merge.tiny import save_fine_tune, save_tiny


def test_an_expert_is_added_as_the_server_has_it_and_taken_out_again(tmp_path: Path) -> None:
    base = open_checkpoint(save_tiny(tmp_path / "base"))
    tune = open_checkpoint(save_fine_tune(base.path, tmp_path / "tune", 1, 0.3))
    config = ExpertConfig(form="both", budget=0.5).resolved(calibrated=False)
    expert = cut_expert("tune", tune, Sources(base, base, backbone_digest(base.path), config)).expert
    assert expert.sparse
    assert expert.low_rank
    assert expert.dense
    model, whole = (LlamaForCausalLM.from_pretrained(base.path).requires_grad_(False) for _ in range(2))
    for name, parameter in whole.named_parameters():
        if name in expert.dense:
            parameter.add_(expert.dense[name])
        if name in expert.sparse:
            parameter.add_(expert.sparse[name].dense(parameter.shape[1]))
        if name in expert.low_rank:
            parameter.add_(expert.low_rank[name].dense())
    ids = torch.tensor([[1, 7, 9, 12]])
    before = model(ids).logits
    with added(model, expert):
        torch.testing.assert_close(model(ids).logits, whole(ids).logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(model(ids).logits, before)
