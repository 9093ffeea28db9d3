"""Experts of a shared budget, on tiny models."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from merge.bundle import Expert, backbone_digest, read_expert, write_expert
from merge.bundle.expert_header import expert_bytes
from merge.checkpoint import Checkpoint, open_checkpoint
from merge.experts import Calibration, ExpertConfig, Sources, cut_expert
from merge.experts.calibration import continue_greedily, make_batches
from merge.experts.distill import divergence, targets
from merge.experts.extract import cut_whole
from merge.experts.factored import choose_parts
from merge.experts.grams import Gram
from merge.experts.jobs import Job, Prompts, run_job
from merge.experts.lora import keeps_base
from merge.experts.placed import Values
from merge.experts.refit import as_read
from merge.experts.running import assign
from merge.lora import open_adapter
from merge.quantised_backbone import write_quantised
from tests.merge.experts.conftest import World
from tests.merge.lora.adapters import Q, factors, write_adapter
from tests.merge.tiny import save_fine_tune, save_tiny

PROMPTS = [[1, 5 + i, 6, 7 + 2 * i] for i in range(6)]
UP = "model.layers.0.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def calibration(tuned: PreTrainedModel, model: PreTrainedModel) -> Calibration:
    return Calibration(tuned, model, PROMPTS, frozenset({2}), 4)


def sources(world: World, backbone: Checkpoint | None = None, calibrated: bool = False, **config: object) -> Sources:
    found = backbone or world.backbone
    resolved = ExpertConfig.model_validate(config).resolved(calibrated)
    return Sources(world.base, found, backbone_digest(found.path), resolved)


def lacking(given: Sources, expert: Expert, fine_tune: Checkpoint) -> float:
    """Squared error of what backbone + expert lacks, over the 2-D weights."""
    total = 0.0
    for name in given.weights():
        left = given.lacking(fine_tune, name)
        if name in expert.sparse:
            left -= expert.sparse[name].dense(left.shape[1])
        if name in expert.low_rank:
            left -= expert.low_rank[name].dense(torch.float32)
        total += float(left.square().sum())
    return total


@pytest.mark.parametrize("form", ["auto", "low_rank", "both"])
@pytest.mark.parametrize("storage", ["int8", "bf16"])
def test_an_expert_keeps_within_its_budget_and_uses_it(world: World, tmp_path: Path, form: str, storage: str) -> None:
    given = sources(world, form=form, budget=0.2, storage=storage)
    expert = cut_expert("one", world.fine_tunes["one"], given).expert
    write_expert(tmp_path / "one.safetensors", expert)
    size = expert_bytes(tmp_path / "one.safetensors")
    assert 0.18 * world.backbone.nbytes < size <= 0.2 * world.backbone.nbytes * (1.02 if expert.sparse else 1)
    assert read_expert(tmp_path / "one.safetensors").low_rank.keys() == expert.low_rank.keys()
    assert bool(expert.sparse) or form != "both"
    assert not expert.sparse or form != "low_rank"
    assert expert.metadata["form"] == form
    assert expert.density == 0


def test_more_bytes_leave_less_of_the_error(world: World) -> None:
    tune = world.fine_tunes["one"]
    left = []
    for budget in (0.1, 0.2, 0.6):
        given = sources(world, form="low_rank", budget=budget)
        left.append(lacking(given, cut_expert("one", tune, given).expert, tune))
    assert left[0] > left[1] > left[2] > 0
    everything = sources(world, form="low_rank", budget=1.0, storage="bf16")
    parts = choose_parts(tune, everything, 10**6)
    assert EMBEDDING in parts.products


def test_a_shared_budget_beats_one_rank_for_all(world: World) -> None:
    tune = world.fine_tunes["one"]
    given = sources(world, form="low_rank", budget=0.2, exclude=["*embed*"])
    parts = choose_parts(tune, given, given.room(640))
    taken = sum((p.b.shape[0] + p.a.shape[1] + 4) * len(p.a) for p in parts.products.values())
    each = sum(sum(world.base.tensors[name].shape) + 4 for name in given.weights())
    uniform, found = 0.0, lacking(given, cut_expert("one", tune, given).expert, tune)
    for name in given.weights():
        s = torch.linalg.svdvals(given.lacking(tune, name))
        uniform += float(s[taken // each :].square().sum())
    assert found < uniform


def test_what_did_not_change_takes_no_bytes(world: World, tmp_path: Path) -> None:
    tune = open_checkpoint(save_fine_tune(world.base.path, tmp_path / "frozen", 5, 0.2, embeddings=False))
    given = sources(world, world.base, form="auto", budget=0.2)
    expert = cut_expert("frozen", tune, given).expert
    assert EMBEDDING not in expert.low_rank
    assert EMBEDDING not in expert.sparse


def test_auto_keeps_a_change_of_few_entries_as_entries(world: World) -> None:
    class Spiked(Checkpoint):
        def tensor(
            self, name: str, dtype: torch.dtype | None = None, check: bool = True, rows: slice | None = None
        ) -> torch.Tensor:
            tensor = world.backbone.tensor(name, dtype, check)
            if name == UP:
                tensor = tensor.clone()
                tensor[torch.arange(48), torch.arange(48) * 7 % 32] += 1.0
            elif name.endswith("q_proj.weight"):
                tensor = tensor + torch.outer(torch.ones(len(tensor)), torch.ones(tensor.shape[1]))
            return tensor

    tune = Spiked(world.base.path, world.base.config, world.base.tensors)
    given = sources(world, form="auto", budget=0.03)
    expert = cut_expert("spiked", tune, given).expert
    assert set(expert.sparse) == {UP}
    assert set(expert.low_rank) == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}
    assert lacking(given, expert, tune) < 0.01 * 48
    assert not expert.dense


def test_prompts_help_and_what_is_stored_is_what_was_scored(world: World, calibration: Calibration) -> None:
    tune, found = world.fine_tunes["two"], {}
    for steps in (0, 20):
        given = sources(world, calibrated=True, form="low_rank", budget=0.2, distill=steps)
        cut = cut_expert("two", tune, given, calibration)
        assert cut.divergence is not None
        assert cut.divergence[1] < cut.divergence[0]
        found[steps] = cut.divergence[1]
        assign(calibration.fine_tune, tune)
        assign(calibration.student, given.backbone)
        lesson = make_batches(PROMPTS, continue_greedily(calibration.fine_tune, PROMPTS, 4, {2}), 8)
        read = {key: as_read(part) for key, part in cut.expert.low_rank.items()}
        norms = {key: Values(None, delta) for key, delta in cut.expert.dense.items()}
        teacher = targets(calibration.fine_tune, lesson)
        assert divergence(calibration.student, norms, lesson, teacher, read) == pytest.approx(
            cut.divergence[1], rel=1e-4
        )
    assert found[20] < found[0]


def test_the_number_of_threads_shows_in_no_bit(world: World) -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(cut_expert("one", world.fine_tunes["one"], sources(world, budget=0.2)).expert)
    finally:
        torch.set_num_threads(before)
    one, other = found
    assert one.low_rank.keys() == other.low_rank.keys()
    for name, part in one.low_rank.items():
        assert torch.equal(part.a, other.low_rank[name].a)
        assert torch.equal(part.b, other.low_rank[name].b)
        assert torch.equal(part.scale, other.low_rank[name].scale)


def test_where_norms_use_the_budget_up_half_of_it_still_goes_to_the_weights(world: World) -> None:
    expert = cut_expert("one", world.fine_tunes["one"], sources(world, budget=0.01, form="low_rank")).expert
    assert len(expert.dense) == 5
    assert 0 < sum(part.nbytes for part in expert.low_rank.values()) <= 0.005 * world.backbone.nbytes


def test_a_sparse_expert_keeps_to_a_budget(world: World, tmp_path: Path) -> None:
    given = sources(world, form="sparse", budget=0.3)
    write_expert(tmp_path / "one.safetensors", cut_expert("one", world.fine_tunes["one"], given).expert)
    assert 0.15 < expert_bytes(tmp_path / "one.safetensors") / world.backbone.nbytes < 0.33


class TestLora:
    @pytest.fixture
    def lora(self, world: World, tmp_path: Path) -> Checkpoint:
        made = {**factors(Q, 32, 32), **factors("model.layers.1.mlp.up_proj", 48, 32, seed=1)}
        return open_adapter(write_adapter(tmp_path / "lora", made), world.base)

    def test_it_is_kept_as_it_is_whatever_its_bytes(self, world: World, lora: Checkpoint) -> None:
        expert = cut_expert("lora", lora, sources(world, world.base, form="lora")).expert
        assert not expert.sparse
        assert not expert.dense
        made = factors(Q, 32, 32)
        part = expert.low_rank[f"{Q}.weight"]
        assert torch.equal(part.a, made[f"{Q}.lora_A.weight"])
        assert torch.equal(part.b, made[f"{Q}.lora_B.weight"])
        assert part.scale.tolist() == [1.5] * 4
        assert set(expert.low_rank) == {f"{Q}.weight", "model.layers.1.mlp.up_proj.weight"}

    def test_it_is_kept_as_it_is_where_the_budget_allows(self, world: World, lora: Checkpoint) -> None:
        kept = cut_expert("lora", lora, sources(world, world.base, budget=0.5)).expert
        assert kept.metadata == {"form": "lora"}
        assert kept.low_rank[f"{Q}.weight"].a.dtype == torch.float32
        given = sources(world, world.base, budget=0.05)
        small = cut_expert("lora", lora, given).expert
        assert small.metadata["form"] == "auto"
        assert small.low_rank[f"{Q}.weight"].a.dtype == torch.int8
        assert max(part.rank for part in small.low_rank.values()) <= 4

    def test_it_is_rounded_whole_where_that_fits(self, world: World, lora: Checkpoint) -> None:
        given = sources(world, world.base, budget=0.05)
        rounded = cut_expert("lora", lora, given).expert
        assert rounded.metadata["selection"] == "whole"
        assert [part.rank for part in rounded.low_rank.values()] == [4, 4]
        for name, part in rounded.low_rank.items():
            change = lora.tensor(name, torch.float32) - world.base.tensor(name, torch.float32)
            # Each factor is off by at most 1/254 of its largest number, and four directions add up.
            assert float((part.dense(torch.float32) - change).norm() / change.norm()) < 0.02
        size = sum(part.nbytes for part in rounded.low_rank.values())
        tight = sources(world, world.base, budget=(size - 1) / world.backbone.nbytes)
        assert cut_expert("lora", lora, tight).expert.metadata["selection"] == "residual"
        assert cut_whole("lora", lora, tight) is None

    def test_no_model_is_run_for_a_whole_one(
        self, world: World, lora: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("merge.experts.jobs.build_model", lambda *_: pytest.fail("a model is built"))
        given = sources(world, world.base, calibrated=True, budget=0.05)
        assert given.config.needs_prompts
        report = run_job(Job("lora", lora, given, Prompts(((1, 2),), 4), 1.0, tmp_path / "lora.safetensors"))
        assert (report.prompts, report.divergence, report.ranks) == (0, None, (2, 4, 4))

    def test_elsewhere_it_is_refused_with_the_reason(self, world: World, lora: Checkpoint) -> None:
        with pytest.raises(ValueError, match="the backbone is not the base: use merge_method: base"):
            cut_expert("lora", lora, sources(world, form="lora"))
        with pytest.raises(ValueError, match="is a full checkpoint"):
            cut_expert("one", world.fine_tunes["one"], sources(world, world.base, form="lora"))


class TestOverARoundedBackbone:
    """A LoRA of a rank of 4, whose change is smaller than the errors of rounding to 4 bits."""

    @pytest.fixture
    def given(self, world: World, tmp_path: Path) -> tuple[Sources, Checkpoint]:
        (tmp_path / "rounded").mkdir()
        write_quantised(tmp_path / "rounded", world.base, "int4", torch.bfloat16)
        made = {key: 0.05 * factor for key, factor in factors(Q, 32, 32).items()}
        lora = open_adapter(write_adapter(tmp_path / "lora", made), world.base)
        backbone = open_checkpoint(tmp_path / "rounded")
        config = ExpertConfig(form="low_rank", budget=0.05, storage="bf16").resolved(calibrated=False)
        return Sources(world.base, backbone, backbone_digest(backbone.path), config, world.base), lora

    def test_directions_are_what_the_fine_tune_learned(self, given: tuple[Sources, Checkpoint]) -> None:
        sources, lora = given
        name = f"{Q}.weight"
        learned, lacking = sources.learned(lora, name), sources.lacking(lora, name)
        assert learned.norm() < (lacking - learned).norm()
        (part,) = choose_parts(lora, sources, sources.room(0)).products.items()
        assert part[0] == name
        product = part[1]
        assert product.a.shape[0] == 4
        space = torch.linalg.qr(product.b).Q
        torch.testing.assert_close(space @ (space.T @ learned), learned, atol=1e-5, rtol=1e-4)
        # Within these directions nothing is lacking any more, errors of rounding included.
        left = space.T @ (lacking - product.b @ product.a)
        torch.testing.assert_close(left, torch.zeros_like(left), atol=1e-5, rtol=0)

    def test_a_lora_that_fits_is_kept_whole(self, given: tuple[Sources, Checkpoint]) -> None:
        sources, lora = given
        config = ExpertConfig(form="auto", budget=0.5).resolved(calibrated=False)
        expert = cut_expert("lora", lora, replace(sources, config=config)).expert
        assert expert.metadata == {"form": "lora"}
        assert set(expert.low_rank) == {f"{Q}.weight"}

    def test_with_prompts_its_own_directions_are_distilled(
        self, given: tuple[Sources, Checkpoint], calibration: Calibration, tmp_path: Path
    ) -> None:
        sources, lora = given
        whole, distilled, still = (
            replace(sources, config=ExpertConfig(form="auto", budget=0.5, distill=steps).resolved(calibrated=True))
            for steps in (0, 100, 1)
        )
        kept = cut_expert("lora", lora, whole, calibration)
        assert kept.divergence is None, "without steps the LoRA stays as it is"
        cut = cut_expert("lora", lora, distilled, calibration)
        assert cut.expert.metadata["selection"] == "distilled"
        assert {name: part.rank for name, part in cut.expert.low_rank.items()} == {f"{Q}.weight": 4}
        assert cut.divergence is not None
        prompts = Prompts(tuple(map(tuple, PROMPTS)), 4)
        job = Job("lora", lora, still, prompts, 1.0, tmp_path / "lora.safetensors")
        assert run_job(job).divergence is not None
        student, _ = calibration.student, assign(calibration.fine_tune, lora)
        replies = continue_greedily(calibration.fine_tune, PROMPTS, 4, {2})
        batches = make_batches(PROMPTS, replies, 8)
        expected = targets(calibration.fine_tune, batches)
        assign(student, sources.backbone)
        left = [
            divergence(student, {}, batches, expected, {k: as_read(part) for k, part in expert.low_rank.items()})
            for expert in (kept.expert, cut.expert)
        ]
        assert left[1] < 0.97 * left[0]

    def test_over_eight_bits_prompts_change_nothing(
        self, world: World, given: tuple[Sources, Checkpoint], tmp_path: Path
    ) -> None:
        _, lora = given
        (tmp_path / "eight").mkdir()
        write_quantised(tmp_path / "eight", world.base, "int8", torch.bfloat16)
        config = ExpertConfig(form="auto", budget=0.5).resolved(calibrated=True)
        backbone = open_checkpoint(tmp_path / "eight")
        eight = Sources(world.base, backbone, backbone_digest(backbone.path), config, world.base)
        assert cut_whole("lora", lora, eight, prompted=True) is not None
        assert cut_whole("lora", lora, replace(given[0], config=config), prompted=True) is None
        assert cut_whole("lora", lora, replace(given[0], config=config)) is not None

    def test_entries_beside_them_take_their_numbers_from_what_is_lacking(
        self, world: World, given: tuple[Sources, Checkpoint]
    ) -> None:
        sources, _ = given
        config = ExpertConfig(form="both", budget=0.2, storage="bf16").resolved(calibrated=False)
        tune = world.fine_tunes["one"]
        expert = cut_expert("one", tune, replace(sources, config=config)).expert
        entries, part = expert.sparse[UP], expert.low_rank[UP].dense(torch.float32)
        left = (sources.lacking(tune, UP) - part).gather(1, entries.index.long())
        kept = entries.numbers.float()
        torch.testing.assert_close(kept[kept != 0], left[kept != 0], atol=1e-3, rtol=1e-2)
        assert (sources.lacking(tune, UP) - part).norm() < sources.lacking(tune, UP).norm()


def test_an_embedding_that_is_no_head_counts_by_row(tmp_path: Path) -> None:
    base = open_checkpoint(save_tiny(tmp_path / "base", tied=False))
    tune = open_checkpoint(save_fine_tune(base.path, tmp_path / "tune", 3, 0.3))
    config = ExpertConfig(form="low_rank", budget=0.05).resolved(calibrated=False)
    given = Sources(base, base, backbone_digest(base.path), config)
    parts = choose_parts(tune, given, given.room(0))
    assert EMBEDDING not in parts.products, "as large a change as that of the head, of which each token reads one row"
    assert parts.products["lm_head.weight"].a.shape[0] > 0


def test_what_entries_remove_is_measured_where_inputs_go_together(world: World) -> None:
    """Of a row that sums to 0, which inputs of equal columns do not see, no entry is worth its bytes."""

    class Balanced(Checkpoint):
        def tensor(
            self, name: str, dtype: torch.dtype | None = None, check: bool = True, rows: slice | None = None
        ) -> torch.Tensor:
            tensor = world.backbone.tensor(name, dtype, check)
            if name == UP:
                tensor = tensor.clone()
                tensor[:, :2] += torch.tensor([1.0, -1.0], dtype=tensor.dtype)
                tensor[:, 2:] += 0.01
            return tensor

    tune = Balanced(world.base.path, world.base.config, world.base.tensors)
    given = sources(world, form="auto", budget=0.02, selection="residual")
    alike = torch.ones(32, 32) + 1e-3 * torch.eye(32)
    parts = choose_parts(tune, given, given.room(0), lambda: [Gram((UP,), alike)])
    assert UP in parts.products
    assert not parts.values


def test_a_backbone_is_compared_with_the_base_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    given = sources(world, form="auto", budget=0.03)
    assert keeps_base(world.base, given, UP)
    assert not keeps_base(world.backbone, given, UP)
    monkeypatch.setattr("merge.experts.lora._equal", None)
    assert keeps_base(world.base, given, UP)
    assert not keeps_base(world.backbone, given, UP)
