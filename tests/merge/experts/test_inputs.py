import torch
from transformers import PreTrainedModel

from merge.experts.calibration import make_batches
from merge.experts.inputs import grouped_by_bytes, input_groups, layer_inputs, linear_weights
from merge.experts.running import assign
from tests.merge.experts.conftest import World

BATCH = make_batches([[1, 5, 6, 7], [1, 9], [1, 8, 8, 8, 8]], [[4, 4], [7], [9]], 3)[0]
LAYER = "model.layers.{}.{}_proj.weight"


def names(layer: int) -> list[tuple[str, ...]]:
    groups = [("q", "k", "v"), ("o",), ("gate", "up"), ("down",)]
    part = {**dict.fromkeys("qkvo", "self_attn."), **dict.fromkeys(("gate", "up", "down"), "mlp.")}
    return [tuple(LAYER.format(layer, part[name] + name) for name in group) for group in groups]


def test_groups_follow_the_computation(model: PreTrainedModel) -> None:
    assert input_groups(model, BATCH, list(linear_weights(model))) == [
        *names(0), *names(1), ("model.embed_tokens.weight",),
    ]  # fmt: skip
    down = names(1)[-1]
    assert input_groups(model, BATCH, [*down, "model.norm.weight"]) == [down]


def test_inputs_are_those_of_each_sequence_alone(world: World, model: PreTrainedModel) -> None:
    assign(model, world.fine_tunes["one"])
    wanted = [group[0] for group in (*names(0), *names(1))] + ["model.embed_tokens.weight"]
    found = layer_inputs(model, BATCH, wanted)
    layers = linear_weights(model)
    alone: dict[str, list[torch.Tensor]] = {name: [] for name in wanted}
    for name, seen in alone.items():
        layers[name].register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0][0]))
    with torch.inference_mode():
        for ids, real in zip(BATCH.ids, BATCH.real, strict=True):
            model(input_ids=ids[real][None])
    for name in wanted:
        torch.testing.assert_close(found[name], torch.cat(alone[name]), rtol=1e-4, atol=1e-5)


def test_nothing_runs_past_what_is_wanted_and_no_hook_stays(model: PreTrainedModel) -> None:
    ran: list[str] = []
    layers = linear_weights(model)
    handle = layers[names(1)[0][0]].register_forward_hook(lambda *_: ran.append("second layer"))
    layer_inputs(model, BATCH, [names(0)[1][0]])
    assert not ran
    handle.remove()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_runs_fit_the_budget_or_hold_one_group() -> None:
    groups = [("a",), ("b",), ("c",), ("d",)]
    assert grouped_by_bytes(groups, [10, 10, 30, 10], rows=5, budget=4 * 5 * 20) == [
        [("a",), ("b",)],
        [("c",)],
        [("d",)],
    ]
    assert grouped_by_bytes(groups, [1] * 4, rows=1, budget=1 << 20) == [groups]
