"""The precision that calibration runs models in."""

from collections.abc import Iterator

import pytest
import torch
from transformers import PreTrainedModel

from merge.experts import Calibration, cut_expert, running
from merge.experts.calibration import make_batches
from merge.experts.distill import divergence, targets
from merge.experts.mapped import HELD, mapped
from merge.experts.placed import Values, placed
from merge.experts.running import assign, products
from tests.merge.experts.conftest import World

LINEAR = "model.layers.0.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
PROMPTS = [[1, 5 + i, 6, 7 + 2 * i] for i in range(6)]


@pytest.fixture
def rounded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a processor that multiplies bfloat16, with a model that is large enough."""
    monkeypatch.setattr(running, "WORTH_ROUNDING", 1)
    monkeypatch.setattr(running, "fast_bfloat16", lambda: True)
    return


def test_small_models_run_in_float32(model: PreTrainedModel, world: World) -> None:
    with mapped(model, world.backbone), products(model):
        assert model.model.layers[0].self_attn.q_proj(torch.ones(1, 32)).dtype == torch.float32
        assert {parameter.dtype for parameter in model.parameters() if parameter.ndim > 1} == {torch.float32}


@pytest.mark.usefixtures("rounded")
def test_only_linear_weights_are_rounded(model: PreTrainedModel, world: World) -> None:
    with mapped(model, world.backbone):
        dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
        assert dtypes[LINEAR] == torch.bfloat16
        assert dtypes[EMBEDDING] == torch.float32  # it is the head as well
        assert dtypes["model.norm.weight"] == torch.float32
        with products(model), torch.inference_mode():
            assert model.base_model(torch.tensor([[1, 5]])).last_hidden_state.dtype == torch.float32


@pytest.mark.usefixtures("rounded")
@pytest.mark.parametrize("held", [0, HELD])
def test_a_small_value_is_not_lost_in_a_rounded_weight(model: PreTrainedModel, world: World, held: int) -> None:
    with mapped(model, world.backbone, held):
        before = world.backbone.tensor(LINEAR, torch.float32)
        small = before[:, :1].abs() * 1e-4
        x = torch.zeros(1, 32).index_fill(1, torch.tensor([0]), 1.0)
        layer = model.get_submodule(LINEAR.removesuffix(".weight"))
        with placed(model, {LINEAR: Values(torch.zeros(len(before), 1, dtype=torch.int64), small)}):
            torch.testing.assert_close(layer(x)[0] - before[:, 0], small[:, 0], rtol=1e-2, atol=1e-9)
        weight = model.get_parameter(LINEAR)
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight.float(), before)


@pytest.mark.usefixtures("rounded")
@pytest.mark.parametrize("form", ["auto", "sparse"])
def test_experts_are_as_good_as_in_float32(
    world: World, tuned: PreTrainedModel, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    calibration = Calibration(tuned, model, PROMPTS, frozenset({2}), 4)
    given = world.sources(form=form, budget=0.2, distill=10)
    cut = cut_expert("one", world.fine_tunes["one"], given, calibration)
    assert cut.divergence is not None
    assert cut.divergence[1] < 0.5 * cut.divergence[0]
    # Rounding changes the logits by about 2^-8 of their size, so the divergence by about its square.
    batches = make_batches(PROMPTS, [[7, 7]] * len(PROMPTS), 4)
    assign(tuned, world.fine_tunes["one"])
    with_rounding = targets(tuned, batches)
    monkeypatch.setattr(running, "fast_bfloat16", lambda: False)
    tuned.float()
    assert divergence(tuned, {}, batches, with_rounding) < 1e-3
