"""Low-rank parts fitted one after the other, on tiny models."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from merge.bundle import backbone_digest
from merge.experts import Calibration, ExpertConfig, Sources
from merge.experts.calibration import Batch, make_batches
from merge.experts.distill import divergence, targets
from merge.experts.factored import Parts, choose_parts
from merge.experts.grams import Gram, input_grams
from merge.experts.inputs import layer_inputs
from merge.experts.low_rank import ridge_of
from merge.experts.placed import Product, Values, placed
from merge.experts.refit import refit
from merge.experts.running import assign
from tests.merge.experts.conftest import World

PROMPTS = [[1, 5 + i, 6, 7 + 2 * i] for i in range(6)]
BATCHES = make_batches(PROMPTS, [[4 + i, 9] for i in range(6)], 4)
FIRST = "model.layers.0.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def calibration(world: World, tuned: PreTrainedModel, model: PreTrainedModel) -> Calibration:
    assign(tuned, world.fine_tunes["one"])
    assign(model, world.backbone)
    return Calibration(tuned, model, PROMPTS, frozenset({2}), 4)


def sources(world: World, **config: object) -> Sources:
    resolved = ExpertConfig.model_validate(config).resolved(calibrated=True)
    return Sources(world.base, world.backbone, backbone_digest(world.backbone.path), resolved)


def chosen(world: World, given: Sources, calibration: Calibration) -> Parts:
    def grams() -> Iterator[Gram]:
        return input_grams(calibration.fine_tune, BATCHES, given.weights())

    return choose_parts(world.fine_tunes["one"], given, given.room(0), grams)


def norms(world: World, given: Sources) -> dict[str, Values]:
    return {name: Values(None, given.lacking(world.fine_tunes["one"], name)) for name in given.vectors()}


def apart(calibration: Calibration, parts: Parts, dense: dict[str, Values]) -> float:
    teacher = targets(calibration.fine_tune, BATCHES)
    return divergence(calibration.student, parts.values | dense, BATCHES, teacher, parts.products)


def rows(model: PreTrainedModel, name: str, batches: Sequence[Batch] = BATCHES) -> Tensor:
    return torch.cat([layer_inputs(model, batch, [name])[name] for batch in batches])


@pytest.mark.parametrize("form", ["low_rank", "both"])
def test_a_refitted_expert_is_nearer_to_the_fine_tune(world: World, calibration: Calibration, form: str) -> None:
    given = sources(world, form=form, budget=0.3, storage="bf16")
    parts, dense = chosen(world, given, calibration), norms(world, given)
    before = {name: parameter.clone() for name, parameter in calibration.student.named_parameters()}
    found = refit(calibration, BATCHES, world.fine_tunes["one"], given, parts, dense)
    assert apart(calibration, found, dense) < 0.7 * apart(calibration, parts, dense)
    assert {name: len(item.a) for name, item in found.products.items()} == {
        name: len(item.a) for name, item in parts.products.items()
    }
    assert found.values is parts.values
    for name, parameter in calibration.student.named_parameters():
        assert torch.equal(parameter, before[name])


def test_the_first_part_is_the_best_one_of_its_rank(world: World, calibration: Calibration) -> None:
    given = sources(world, form="low_rank", budget=0.1, storage="bf16")
    parts, tune = chosen(world, given, calibration), world.fine_tunes["one"]
    found = refit(calibration, BATCHES, tune, given, parts, {})
    x = rows(calibration.fine_tune, FIRST)
    others = {name: item for name, item in parts.products.items() if name == EMBEDDING}
    with placed(calibration.student, {}, others):
        read = rows(calibration.student, FIRST)
    lacking, stored = given.lacking(tune, FIRST), world.backbone.tensor(FIRST, torch.float32)
    ridge = ridge_of(read.T @ read)

    def loss(b: Tensor, a: Tensor) -> float:
        error = x @ tune.tensor(FIRST, torch.float32).T - read @ (stored + b @ a).T
        return float(error.square().sum() + ridge * (b @ a - lacking).square().sum())

    item = found.products[FIRST]
    assert 0 < len(item.a) < 16
    best = loss(item.b, item.a)
    assert best < loss(parts.products[FIRST].b, parts.products[FIRST].a)
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        b, a = (x + 1e-2 * x.abs().mean() * torch.randn(x.shape, generator=draw) for x in (item.b, item.a))
        assert best < loss(b, a)


def test_parts_that_are_exact_stay(world: World, calibration: Calibration) -> None:
    given = sources(world, form="low_rank", budget=1.0, storage="bf16")
    tune = world.fine_tunes["one"]
    whole = {name: given.lacking(tune, name) for name in given.weights()}
    parts = Parts({}, {name: Product(item, torch.eye(item.shape[1])) for name, item in whole.items()})
    found = refit(calibration, BATCHES, tune, given, parts, norms(world, given))
    assert found.products[EMBEDDING] is parts.products[EMBEDDING]
    for name, item in found.products.items():
        # The parts before it are rounded to bfloat16, which a layer makes up for.
        torch.testing.assert_close(item.b @ item.a, whole[name], rtol=0, atol=2e-2 * float(whole[name].abs().max()))


def test_without_parts_there_is_nothing_to_fit(world: World, calibration: Calibration) -> None:
    given = sources(world, form="low_rank", budget=0.1)
    assert refit(calibration, BATCHES, world.fine_tunes["one"], given, Parts({}, {}), {}).products == {}
