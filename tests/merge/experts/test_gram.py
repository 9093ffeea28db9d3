import torch
from transformers import PreTrainedModel

from merge.experts.calibration import make_batches
from merge.experts.gram import gram_matrices, linear_weights
from merge.experts.running import assign
from tests.merge.experts.conftest import World

BATCHES = make_batches([[1, 5, 6, 7], [1, 9], [1, 8, 8, 8, 8]], [[4, 4], [7], [9]], 2)


def test_matches_the_inputs_seen_one_sequence_at_a_time(world: World, model: PreTrainedModel) -> None:
    assign(model, world.fine_tunes["one"])
    layers = linear_weights(model)
    names = [name for name in layers if "embed" not in name]
    found = dict(gram_matrices(model, BATCHES, names))
    assert list(found) == names
    expected = {name: torch.zeros(layers[name].in_features, layers[name].in_features) for name in names}

    def hook_for(name: str):  # type: ignore[no-untyped-def]
        def hook(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0].flatten(0, -2)
            expected[name] += rows.T @ rows

        return hook

    for name in names:
        layers[name].register_forward_pre_hook(hook_for(name))
    with torch.inference_mode():
        for batch in BATCHES:
            for ids, real in zip(batch.ids, batch.real, strict=True):
                model(input_ids=ids[real][None])
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)


def test_a_tight_budget_changes_nothing(world: World, model: PreTrainedModel) -> None:
    assign(model, world.fine_tunes["one"])
    names = list(linear_weights(model))
    roomy = dict(gram_matrices(model, BATCHES, names))
    tight = dict(gram_matrices(model, BATCHES, names, budget=1))
    assert list(roomy) == list(tight)
    assert all(torch.equal(roomy[name], tight[name]) for name in names)


def test_layers_with_one_input_share_one_matrix(world: World, model: PreTrainedModel) -> None:
    assign(model, world.fine_tunes["one"])
    found = dict(gram_matrices(model, BATCHES, list(linear_weights(model))))
    layer = "model.layers.1.self_attn."
    assert found[f"{layer}q_proj.weight"] is found[f"{layer}v_proj.weight"]
    assert found[f"{layer}q_proj.weight"] is not found[f"{layer}o_proj.weight"]


def test_only_what_is_wanted_is_measured(world: World, model: PreTrainedModel) -> None:
    assign(model, world.fine_tunes["one"])
    wanted = ["model.layers.0.mlp.down_proj.weight"]
    assert [name for name, _ in gram_matrices(model, BATCHES, wanted)] == wanted
    assert not any(module._forward_pre_hooks for module in model.modules())
