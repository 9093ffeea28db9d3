"""What calibration keeps: in memory up to a budget, and the same numbers in files beyond it."""

import errno
import os
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from merge.experts import distill, extract, layers
from merge.experts.calibration import make_batches
from merge.experts.distill import distillation_bytes
from merge.experts.extract import cut_expert
from merge.experts.fit import layer_moments
from merge.experts.inputs import linear_weights
from merge.experts.running import assign
from merge.experts.sources import Calibration
from merge.experts.spilled import Spill
from tests.merge.experts.conftest import World

BATCHES = make_batches([[1, 5, 6, 7], [1, 9], [1, 8, 8, 8, 8]], [[4, 4], [7], [9]], 2)


def mapped_files() -> int:
    return Path("/proc/self/maps").read_text().count(".spilled-")


def test_tensors_beyond_the_budget_are_in_files_without_a_name(tmp_path: Path) -> None:
    spill, tensors = Spill(100, tmp_path), [torch.randn(5, 4).to(dtype) for dtype in (torch.float32, torch.bfloat16)]
    before = mapped_files()
    kept = [spill.keep(tensor) for tensor in (*tensors, tensors[0].clone())]
    assert kept[0] is tensors[0]  # 80 bytes, and 40 are more than what is left
    assert mapped_files() == before + 2
    assert list(tmp_path.iterdir()) == []
    for found, tensor in zip(kept, (*tensors, tensors[0]), strict=True):
        assert torch.equal(found, tensor)
        assert found.dtype == tensor.dtype
    kept[2].mul_(2)
    assert torch.equal(kept[2], 2 * tensors[0])
    del kept, found
    assert mapped_files() == before


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        Spill(0, tmp_path).keep(torch.ones(3))
    assert list(tmp_path.iterdir()) == []


def test_hidden_states_in_files_give_the_same_moments(
    world: World, tuned: PreTrainedModel, model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assign(tuned, world.fine_tunes["one"])
    assign(model, world.backbone)
    names = [name for name in linear_weights(model) if "embed" not in name]
    roomy = list(layer_moments(tuned, model, BATCHES, names))
    monkeypatch.setattr(layers, "HIDDEN", 0)
    spilled, most = [], 0
    for item in layer_moments(tuned, model, BATCHES, names, tmp_path):
        spilled.append(item)
        most = max(most, mapped_files())
    assert most == 2 * len(BATCHES)
    for (name, ours), (other, theirs) in zip(roomy, spilled, strict=True):
        assert name == other
        assert torch.equal(ours.gram, theirs.gram)
        assert torch.equal(ours.drift, theirs.drift)


@pytest.mark.parametrize("form", ["low_rank", "sparse"])
def test_an_expert_is_the_same_whatever_is_in_files(
    world: World,
    tuned: PreTrainedModel,
    model: PreTrainedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
) -> None:
    settings = {"density": 0.05} if form == "sparse" else {"form": form, "budget": 0.2}
    given = Calibration(tuned, model, [[1, 5, 6, 7], [1, 9, 5]], frozenset({2}), 3, tmp_path)
    sources = world.sources(**settings, distill=2)
    expected = cut_expert("one", world.fine_tunes["one"], sources, given)
    monkeypatch.setattr(layers, "HIDDEN", 0)
    monkeypatch.setattr(distill, "KEPT", 0)
    found = cut_expert("one", world.fine_tunes["one"], sources, given)
    assert found.divergence == expected.divergence
    for name, part in expected.expert.low_rank.items():
        assert torch.equal(found.expert.low_rank[name].a, part.a)
        assert torch.equal(found.expert.low_rank[name].b, part.b)
    for name, values in expected.expert.sparse.items():
        assert torch.equal(found.expert.sparse[name].value, values.value)


def test_distillation_without_room_is_refused_before_the_fine_tune_is_measured(
    world: World, tuned: PreTrainedModel, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object) -> None:
        raise AssertionError("the fine-tune was run")

    given = Calibration(tuned, model, [[1, 5, 6, 7], [1, 9, 5]], frozenset({2}), 3)
    monkeypatch.setattr(extract, "available_bytes", lambda _device: 100_000)
    monkeypatch.setattr(extract, "targets", measured)
    with pytest.raises(
        ValueError, match=r"distillation of expert 'one' takes about 0\.\d GB .* set experts.distill to 0"
    ):
        cut_expert("one", world.fine_tunes["one"], world.sources(form="low_rank", budget=0.2, distill=2), given)
    monkeypatch.undo()
    cut_expert("one", world.fine_tunes["one"], world.sources(form="low_rank", budget=0.2, distill=0), given)


def test_the_memory_of_a_distillation_is_that_of_its_parts(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, tokens = model.config, max(batch.ids.numel() for batch in BATCHES)
    layer = 4 * tokens * (10 * 32 + 4 * 48)
    logits = 16 * max(int(batch.predicts.sum()) for batch in BATCHES) * 33
    assert distillation_bytes(config, 2, BATCHES, 1000) == 2 * layer + logits + 16 * 1000
    monkeypatch.setattr(distill, "ACTIVATIONS", 0)  # computed again layer by layer
    assert distillation_bytes(config, 2, BATCHES, 0) == layer + 2 * 4 * tokens * 32 + logits
