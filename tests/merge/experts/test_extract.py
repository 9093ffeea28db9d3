import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from merge.bundle import Expert
from merge.checkpoint import Checkpoint, CheckpointError
from merge.experts import Calibration, ExpertConfig, cut_expert, expert_factors, task_magnitudes
from merge.experts.calibration import continue_greedily, make_batches
from merge.experts.config import FACTORS
from merge.experts.distill import divergence, targets
from merge.experts.placed import Values
from merge.experts.running import assign, build_model, end_tokens, load_tokenizer
from merge.experts.sources import Sources
from tests.merge.experts.conftest import World

PROMPTS = [[1, 5 + i, 6, 7 + 2 * i] for i in range(6)]
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def calibration(tuned: PreTrainedModel, model: PreTrainedModel) -> Calibration:
    return Calibration(tuned, model, PROMPTS, frozenset({2}), 4)


def effective(sources: Sources, expert: Expert, name: str) -> torch.Tensor:
    stored = sources.backbone.tensor(name, torch.float32)
    if name in expert.sparse:
        return stored + expert.sparse[name].dense(stored.shape[1])
    return stored + expert.dense[name] if name in expert.dense else stored


def data_free(world: World, **config: object) -> tuple[Sources, Expert]:
    sources = world.sources(**{"distill": 0, "selection": "magnitude", **config})
    return sources, cut_expert("one", world.fine_tunes["one"], sources).expert


def test_everything_kept_is_the_fine_tune(world: World) -> None:
    sources, expert = data_free(world, density=1.0, values="exact", exclude=[])
    assert set(expert.sparse) | set(expert.dense) == set(world.base.tensors)
    for name in world.base.tensors:
        tune = world.fine_tunes["one"].tensor(name, torch.float32)
        torch.testing.assert_close(effective(sources, expert, name), tune, rtol=0, atol=2e-3)
        assert (
            torch.equal(effective(sources, expert, name).to(torch.bfloat16), tune.to(torch.bfloat16)) or tune.ndim == 2
        )


def test_exact_entries_are_the_fine_tunes(world: World) -> None:
    sources, expert = data_free(world, density=0.1, values="exact")
    index = expert.sparse[UP].index.long()
    tune = world.fine_tunes["one"].tensor(UP, torch.float32)
    torch.testing.assert_close(
        effective(sources, expert, UP).gather(1, index), tune.gather(1, index), rtol=0, atol=2e-3
    )
    vector = tune - world.base.tensor(UP, torch.float32)
    kept = torch.zeros_like(vector).scatter(1, index, 1.0).bool()
    assert bool((vector.abs().masked_fill(~kept, 9).amin(1) >= vector.abs().masked_fill(kept, 0).amax(1)).all())


@pytest.mark.parametrize("overlap", ["add", "replace"])
def test_overlap_says_what_the_value_is_added_to(world: World, overlap: str) -> None:
    sources = world.sources(distill=0, selection="magnitude", values="rescaled", density=0.1, overlap=overlap)
    expert = cut_expert("one", world.fine_tunes["one"], sources, factor=3.0).expert
    index = expert.sparse[UP].index.long()
    base, tune = (item.tensor(UP, torch.float32) for item in (world.base, world.fine_tunes["one"]))
    below = base if overlap == "replace" else world.backbone.tensor(UP, torch.float32)
    expected = (below + 3 * (tune - base)).gather(1, index)
    torch.testing.assert_close(effective(sources, expert, UP).gather(1, index), expected, rtol=0, atol=1e-2)


def test_the_same_number_of_entries_in_every_row_and_one_at_least(world: World) -> None:
    _, expert = data_free(world, density=0.001)
    assert {delta.index.shape[1] for delta in expert.sparse.values()} == {1}
    _, expert = data_free(world, density=0.07)
    widths = {name: world.base.tensors[name].shape[1] for name in expert.sparse}
    assert {(widths[name], delta.index.shape[1]) for name, delta in expert.sparse.items()} == {(32, 2), (48, 3)}


def test_include_exclude_and_dense(world: World) -> None:
    _, expert = data_free(world, include=["*mlp*"], exclude=["*down*"], dense_1d=False)
    assert sorted(expert.sparse) == [
        f"model.layers.{i}.mlp.{part}_proj.weight" for i in (0, 1) for part in ("gate", "up")
    ]
    assert not expert.dense
    _, expert = data_free(world)
    assert not any("embed" in name for name in expert.sparse)
    norms = {name for name in world.base.tensors if "norm" in name}
    assert set(expert.dense) == norms
    for name in norms:
        tune, stored = (item.tensor(name, torch.float32) for item in (world.fine_tunes["one"], world.backbone))
        assert torch.equal(expert.dense[name], tune - stored)


def test_activation_beats_magnitude_on_the_prompts(world: World, calibration: Calibration) -> None:
    tune, found = world.fine_tunes["one"], {}
    for selection in ("magnitude", "activation"):
        for values in ("exact", "least_squares"):
            sources = world.sources(distill=0, selection=selection, values=values, density=0.1, dense_1d=False)
            cut = cut_expert("one", tune, sources, calibration)
            assert cut.divergence is not None
            found[selection, values] = cut.divergence[1]
            assert cut.divergence[1] < cut.divergence[0]
    assert found["activation", "least_squares"] < found["magnitude", "least_squares"]
    assert found["activation", "least_squares"] < found["magnitude", "exact"]


def test_distillation_helps_and_stores_what_was_scored(world: World, calibration: Calibration) -> None:
    tune = world.fine_tunes["two"]
    plain, distilled = (
        cut_expert("two", tune, world.sources(density=0.05, distill=steps), calibration) for steps in (0, 15)
    )
    assert plain.divergence is not None
    assert distilled.divergence is not None
    assert distilled.divergence[0] == plain.divergence[0]
    assert distilled.divergence[1] < plain.divergence[1]
    assert distilled.expert.metadata == {
        "selection": "activation", "values": "least_squares", "distill": "15", "storage": "int8",
    }  # fmt: skip


def test_embeddings_can_be_included(world: World, calibration: Calibration) -> None:
    sources = world.sources(density=0.1, distill=0, exclude=[])
    expert = cut_expert("one", world.fine_tunes["one"], sources, calibration).expert
    assert expert.sparse["model.embed_tokens.weight"].index.shape == (33, 3)


def test_magnitudes_are_of_the_task_vector(world: World) -> None:
    sources = world.sources(density=1.0)
    magnitudes = task_magnitudes(sources, world.fine_tunes["one"])
    assert magnitudes.kept == pytest.approx(magnitudes.overall)
    assert magnitudes.overall > 0


def test_assigning_other_names_is_refused(world: World, model: PreTrainedModel) -> None:
    tensors = dict(world.base.tensors)
    del tensors["model.norm.weight"]
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is not in the checkpoint"):
        assign(model, type(world.base)(world.base.path, world.base.config, tensors))


def test_directories_that_cannot_be_run_are_named(tmp_path_factory: pytest.TempPathFactory, world: World) -> None:
    empty = tmp_path_factory.mktemp("empty")
    (empty / "config.json").write_text('{"model_type": "none_such"}')
    with pytest.raises(CheckpointError, match="cannot be run as a causal language model"):
        build_model(empty)
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        load_tokenizer(empty)
    assert end_tokens(build_model(world.base.path), load_tokenizer(world.base.path)) == {2}


def test_a_text_beyond_the_tokenizers_limit_is_no_warning(world: World, tmp_path: Path) -> None:
    """transformers would say that a long text leads to indexing errors, in the middle of a merge."""
    copy = tmp_path / "base"
    shutil.copytree(world.base.path, copy)
    settings = copy / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": 8}))
    assert load_tokenizer(copy).model_max_length > 10**6


@pytest.mark.parametrize(
    "config",
    [
        {"selection": "magnitude", "values": "rescaled", "distill": 0},
        {"selection": "activation", "distill": 0},
        {"distill": 4},
    ],
)
def test_eight_bits_come_close_to_sixteen(world: World, calibration: Calibration, config: dict[str, object]) -> None:
    tune, found = world.fine_tunes["one"], {}
    for storage in ("bf16", "int8"):
        sources = world.sources(density=0.1, storage=storage, **config)
        cut = cut_expert("one", tune, sources, calibration)
        assert cut.divergence is not None
        found[storage] = cut.divergence[1]
        for delta in cut.expert.sparse.values():
            assert delta.value.dtype == (torch.int8 if storage == "int8" else torch.bfloat16)
        assert cut.expert.metadata.get("storage") == (None if storage == "bf16" else "int8")
        assert divergence_of(cut.expert, calibration, tune, sources) == pytest.approx(cut.divergence[1], rel=1e-4)
    assert found["int8"] == pytest.approx(found["bf16"], rel=0.05)


def divergence_of(expert: Expert, calibration: Calibration, fine_tune: Checkpoint, sources: Sources) -> float:
    """KL of the stored expert, computed from what a reader of the file would see."""
    assign(calibration.fine_tune, fine_tune)
    batches = make_batches(calibration.prompts, continue_greedily(calibration.fine_tune, PROMPTS, 4, {2}), 8)
    teacher = targets(calibration.fine_tune, batches)
    assign(calibration.student, sources.backbone)
    values = {name: Values(delta.index.long(), delta.numbers) for name, delta in expert.sparse.items()}
    values |= {name: Values(None, delta) for name, delta in expert.dense.items()}
    return divergence(calibration.student, values, batches, teacher)


def test_entries_of_the_residual_are_what_the_backbone_lacks(world: World) -> None:
    sources, expert = data_free(world, density=0.1, selection="residual", values="exact")
    tune, stored = (item.tensor(UP, torch.float32) for item in (world.fine_tunes["one"], world.backbone))
    index = expert.sparse[UP].index.long()
    assert torch.equal(index, (tune - stored).abs().topk(3, 1).indices.sort(1).values)
    torch.testing.assert_close(
        effective(sources, expert, UP).gather(1, index), tune.gather(1, index), rtol=0, atol=2e-3
    )
    sources, scaled = data_free(world, density=0.1, selection="residual", values="rescaled")
    assert sources.config.overlap is None
    tripled = cut_expert("one", world.fine_tunes["one"], sources, factor=3.0).expert
    assert torch.equal(tripled.sparse[UP].index, scaled.sparse[UP].index)
    torch.testing.assert_close(tripled.sparse[UP].numbers, 3 * scaled.sparse[UP].numbers, rtol=0.02, atol=0)
    assert tripled.metadata["factor"] == "3"
    assert task_magnitudes(sources, world.fine_tunes["one"]).overall != pytest.approx(
        task_magnitudes(world.sources(density=0.1), world.fine_tunes["one"]).overall
    )


@pytest.mark.parametrize("selection", ["magnitude", "residual", "activation"])
def test_a_calibrated_factor_is_the_best_of_those_tried(world: World, calibration: Calibration, selection: str) -> None:
    tune, found = world.fine_tunes["one"], {}
    settings = {"distill": 0, "selection": selection, "values": "rescaled", "density": 0.1}
    for factor in (1.0, 2.0, 5.0, 14.0):
        cut = cut_expert("one", tune, world.sources(**settings, rescale=factor), calibration, factor)
        assert cut.divergence is not None
        found[factor] = cut.divergence[1]
    best = cut_expert("one", tune, world.sources(**settings, rescale="calibrated"), calibration)
    assert best.divergence is not None
    assert best.divergence[1] <= min(found.values()) + 1e-6
    chosen = float(best.expert.metadata["factor"])
    assert chosen in FACTORS
    again = cut_expert("one", tune, world.sources(**settings, rescale=chosen), calibration, chosen)
    assert torch.equal(again.expert.sparse[UP].value, best.expert.sparse[UP].value)


def test_what_needs_prompts_says_so(world: World) -> None:
    for config in ({"rescale": "calibrated", "distill": 0, "selection": "magnitude"}, {"selection": "activation"}):
        sources = world.sources(**config)
        assert sources.config.needs_prompts
        with pytest.raises(ValueError, match="expert 'one' cannot be cut without calibration prompts"):
            cut_expert("one", world.fine_tunes["one"], sources)
    assert not world.sources(selection="magnitude", distill=0).config.needs_prompts


@pytest.mark.parametrize("overlap", ["add", "replace"])
def test_the_nearest_factor_is_the_best_one_and_no_worse_than_the_backbone(world: World, overlap: str) -> None:
    settings = {"distill": 0, "selection": "magnitude", "values": "rescaled", "density": 0.1, "storage": "bf16"}
    sources = world.sources(**settings, rescale="nearest", overlap=overlap)
    tune = world.fine_tunes["one"]
    best = expert_factors(sources, {"one": tune})["one"]

    def distance(factor: float) -> float:
        expert = cut_expert("one", tune, sources, factor=factor).expert
        lost = [(effective(sources, expert, name) - tune.tensor(name, torch.float32)).norm() for name in expert.sparse]
        return float(torch.stack(lost).norm())

    backbone = [
        (world.backbone.tensor(name, torch.float32) - tune.tensor(name, torch.float32)).norm()
        for name in sources.weights()
    ]
    assert distance(best) < min(distance(best - 0.1), distance(best + 0.1), float(torch.stack(backbone).norm()))
    assert best == 1.0 if overlap == "replace" else 0 < best < 1


def test_the_usual_expert_without_prompts_is_nearer_to_the_fine_tune_in_every_weight(world: World) -> None:
    resolved = ExpertConfig(density=0.1).resolved(calibrated=False)
    sources = Sources(world.base, world.backbone, "digest", resolved)
    assert expert_factors(sources, world.fine_tunes) == {}
    for name, tune in world.fine_tunes.items():
        expert = cut_expert(name, tune, sources).expert
        for weight in sources.weights():
            wanted = tune.tensor(weight, torch.float32)
            before = (world.backbone.tensor(weight, torch.float32) - wanted).norm(dim=1)
            assert bool(((effective(sources, expert, weight) - wanted).norm(dim=1) < before).all())


def test_empty_replies_are_counted(world: World, calibration: Calibration) -> None:
    cut = cut_expert("one", world.fine_tunes["one"], world.sources(distill=0), calibration)
    assert cut.empty == 0
    assert cut.factor is None
    assign(calibration.fine_tune, world.fine_tunes["one"])
    replies = continue_greedily(calibration.fine_tune, PROMPTS, 4, {2})
    first = frozenset(reply[0] for reply in replies[:2])
    ended = Calibration(calibration.fine_tune, calibration.student, PROMPTS, first, 4)
    expected = sum(reply[0] in first for reply in replies)
    assert cut_expert("one", world.fine_tunes["one"], world.sources(distill=0), ended).empty == expected > 0
