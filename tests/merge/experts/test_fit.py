from collections import Counter

import pytest
import torch
from transformers import PreTrainedModel

from merge.experts import fit
from merge.experts.calibration import make_batches
from merge.experts.fit import Moments, layer_moments
from merge.experts.inputs import layer_inputs, linear_weights
from merge.experts.low_rank import ridge_of
from merge.experts.running import assign
from tests.merge.experts.conftest import World

BATCHES = make_batches([[1, 5, 6, 7], [1, 9], [1, 8, 8, 8, 8]], [[4, 4], [7], [9]], 2)


@pytest.fixture
def weights(world: World, tuned: PreTrainedModel, model: PreTrainedModel) -> list[str]:
    assign(tuned, world.fine_tunes["one"])
    assign(model, world.backbone)
    return [name for name in linear_weights(model) if "embed" not in name]


def rows(model: PreTrainedModel, name: str) -> torch.Tensor:
    return torch.cat([layer_inputs(model, batch, [name])[name] for batch in BATCHES])


def test_moments_are_of_both_models_inputs(
    weights: list[str], world: World, tuned: PreTrainedModel, model: PreTrainedModel
) -> None:
    found = list(layer_moments(tuned, model, BATCHES, weights))
    assert [name for name, _ in found] == weights
    for name, moments in found:
        x, given = rows(tuned, name), rows(model, name)
        torch.testing.assert_close(moments.gram, given.T @ given)
        torch.testing.assert_close(moments.drift, (x - given).T @ given)
        ours, theirs = (item.tensor(name, torch.float32) for item in (world.fine_tunes["one"], world.backbone))
        wanted = x @ ours.T - given @ theirs.T
        torch.testing.assert_close(moments.target(ours, ours - theirs), wanted.T @ given, rtol=1e-3, atol=1e-3)


def test_a_corrected_weight_gives_the_nearest_outputs_over_the_students_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 7, generator=generator)
    given = x + 0.3 * x.roll(1, 1) + 0.1 * torch.randn(50, 7, generator=generator)
    weight = torch.randn(5, 7, generator=generator)
    moments = Moments(given.T @ given, (x - given).T @ given)
    # Least squares over the inputs, with a row for each input of what keeps W' near W.
    ridge = ridge_of(moments.gram) ** 0.5 * torch.eye(7)
    wanted = torch.linalg.lstsq(torch.cat([given, ridge]), torch.cat([x @ weight.T, ridge @ weight.T])).solution.T
    torch.testing.assert_close(moments.corrected(weight), wanted, rtol=1e-3, atol=1e-4)


def test_later_layers_see_what_was_put_into_earlier_ones(
    weights: list[str], tuned: PreTrainedModel, model: PreTrainedModel
) -> None:
    theirs, ours = dict(tuned.named_parameters()), dict(model.named_parameters())
    for name, parameter in ours.items():
        if name not in weights:
            parameter.data.copy_(theirs[name])
    for name, moments in layer_moments(tuned, model, BATCHES, weights):
        # every layer so far is the fine-tune's, so its inputs are as well
        torch.testing.assert_close(moments.drift, torch.zeros_like(moments.drift), rtol=0, atol=1e-3)
        ours[name].data.copy_(theirs[name])


def test_a_tight_budget_changes_nothing(
    weights: list[str], tuned: PreTrainedModel, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy = list(layer_moments(tuned, model, BATCHES, weights))
    monkeypatch.setattr(fit, "BUDGET", 1)
    tight = list(layer_moments(tuned, model, BATCHES, weights))
    for (name, ours), (other, theirs) in zip(roomy, tight, strict=True):
        assert name == other
        assert torch.equal(ours.gram, theirs.gram)
        assert torch.equal(ours.drift, theirs.drift)


def test_layers_with_one_input_share_their_moments(
    weights: list[str], tuned: PreTrainedModel, model: PreTrainedModel
) -> None:
    found = dict(layer_moments(tuned, model, BATCHES, weights))
    layer = "model.layers.1.self_attn."
    assert found[f"{layer}q_proj.weight"] is found[f"{layer}v_proj.weight"]
    assert found[f"{layer}q_proj.weight"] is not found[f"{layer}o_proj.weight"]


def test_the_work_grows_with_the_depth_and_not_with_its_square(
    weights: list[str], world: World, tuned: PreTrainedModel, model: PreTrainedModel
) -> None:
    runs: Counter[int] = Counter()
    for number, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(lambda *_, number=number: runs.update([number]))
    list(layer_moments(tuned, model, BATCHES, weights))
    # Each layer runs to find the groups (the first batch), to learn its call, once for each of the four tensors that
    # its weights read, and, unless it is the last, to go on to the next.
    assert runs == {0: 1 + len(BATCHES) * 6, 1: 1 + len(BATCHES) * 5}
