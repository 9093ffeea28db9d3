import pytest
import torch
from transformers import PreTrainedModel

from merge.experts.calibration import Batch, make_batches
from merge.experts.distill import Settings, Target, distill, divergence, forward, targets
from merge.experts.magnitude import largest_entries
from merge.experts.placed import Values
from merge.experts.running import assign
from tests.merge.experts.conftest import World

BATCHES = make_batches([[1, 5 + i, 6, 7 + i] for i in range(8)], [[9, 9 + i, 4] for i in range(8)], 4)
WEIGHTS = ("model.layers.0.self_attn.v_proj.weight", "model.layers.1.mlp.down_proj.weight")
NORM = "model.norm.weight"


@pytest.fixture
def teacher(world: World, model: PreTrainedModel) -> list[Target]:
    assign(model, world.fine_tunes["one"])
    found = targets(model, BATCHES)
    assign(model, world.backbone)
    return found


def start(world: World) -> dict[str, Values]:
    values: dict[str, Values] = {}
    for name in WEIGHTS:
        residual = world.fine_tunes["one"].tensor(name, torch.float32) - world.backbone.tensor(name, torch.float32)
        index = largest_entries(residual, 3)
        values[name] = Values(index, residual.gather(1, index))
    shape = world.base.tensors[NORM].shape
    return values | {NORM: Values(None, torch.zeros(shape))}


def test_the_teacher_has_one_distribution_a_predicted_token(teacher: list[Target], world: World) -> None:
    assert [tuple(item.log_probs.shape) for item in teacher] == [(12, 33), (12, 33)]
    assert [tuple(item.hidden.shape) for item in teacher] == [(28, 32), (28, 32)]
    for item in teacher:
        torch.testing.assert_close(item.log_probs.exp().sum(-1), torch.ones(12))


def test_forward_are_the_models_logits(world: World, model: PreTrainedModel) -> None:
    assign(model, world.backbone)
    batch: Batch = BATCHES[0]
    with torch.inference_mode():
        whole = model(input_ids=batch.ids, attention_mask=batch.real.long(), output_hidden_states=True)
        hidden, logits = forward(model, batch)
        torch.testing.assert_close(logits, whole.logits[batch.predicts])
        torch.testing.assert_close(hidden, whole.hidden_states[-1][batch.real])


def test_distillation_nears_the_fine_tune(world: World, model: PreTrainedModel, teacher: list[Target]) -> None:
    values = start(world)
    support = {name: item.index.clone() for name, item in values.items() if item.index is not None}
    before = divergence(model, values, BATCHES, teacher)
    distill(model, values, BATCHES, teacher, Settings(20, rate=1e-2))
    after = divergence(model, values, BATCHES, teacher)
    assert after < 0.9 * before
    assert all(torch.equal(support[name], values[name].index) for name in support)  # type: ignore[arg-type]
    for name in support:
        assert torch.equal(values[name].value, values[name].value.to(torch.bfloat16).float())
    assert bool((values[NORM].value != 0).any())


def test_the_model_is_left_as_it_was(world: World, model: PreTrainedModel, teacher: list[Target]) -> None:
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    distill(model, start(world), BATCHES, teacher, Settings(3))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert not parameter.requires_grad


def test_a_failure_leaves_the_model_as_it_was(world: World, model: PreTrainedModel, teacher: list[Target]) -> None:
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(RuntimeError, match="size"):
        distill(
            model, start(world), BATCHES, [Target(item.log_probs[:, :5], item.hidden) for item in teacher], Settings(3)
        )
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_a_seed_repeats(world: World, model: PreTrainedModel, teacher: list[Target]) -> None:
    runs = []
    for _ in range(2):
        values = start(world)
        distill(model, values, BATCHES, teacher, Settings(4, seed=5))
        runs.append(values)
    assert all(torch.equal(runs[0][name].value, runs[1][name].value) for name in runs[0])


def test_the_whole_residual_leaves_no_divergence(world: World, model: PreTrainedModel, teacher: list[Target]) -> None:
    tune = world.fine_tunes["one"]
    values = {
        name: Values(None, tune.tensor(name, torch.float32) - world.backbone.tensor(name, torch.float32))
        for name in world.base.tensors
    }
    assert divergence(model, {}, BATCHES, teacher) > 1e-3
    assert divergence(model, values, BATCHES, teacher) == pytest.approx(0.0, abs=1e-6)
