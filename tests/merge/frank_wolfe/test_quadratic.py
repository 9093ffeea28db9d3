"""Frank-Wolfe on a loss whose minimum over the hull is known."""

import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge.checkpoint import Checkpoint
from merge.frank_wolfe import FrankWolfeConfig, FrankWolfeMerge, Step, merge_frank_wolfe
from merge.frank_wolfe.vertices import INITIAL
from tests.merge.frank_wolfe.quadratic import SHAPES, SIZE, Case, Quadratic, flatten, save, unflatten

VARIANTS: list[dict[str, Any]] = [
    {"variant": "hard", "step_rule": "classic"},
    {"variant": "hard", "step_rule": "scaled", "step_size": 0.5},
    {"variant": "hard", "step_rule": "line_search"},
    {"variant": "hard", "score": "cosine"},
    {"variant": "soft"},
    {"variant": "soft", "soft": {"vertices": 2}},
    {"variant": "soft", "soft": {"steps": 0}, "step_rule": "classic"},
]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("case"), irrelevant=8)


def run(case: Case, pool: list[str] | None = None, **parameters: Any) -> FrankWolfeMerge:
    names = list(case.corners) if pool is None else pool
    config = FrankWolfeConfig.model_validate(parameters)
    return merge_frank_wolfe(case.start, {name: case.fine_tunes[name] for name in names}, case.objective, config)


def loss_of(case: Case, merge: FrankWolfeMerge) -> float:
    return case.objective.at(flatten(merge.tensors))


def test_reaches_the_minimum_of_brute_force(case: Case) -> None:
    best, lowest = case.minimum()
    assert lowest < case.objective.at(case.base) - 1
    torch.testing.assert_close(flatten(run(case, steps=12).tensors), best, rtol=0, atol=1e-3)
    # Hard steps zigzag towards a minimum inside a face, which is why they need so many.
    for rule in ("classic", "line_search"):
        merge = run(case, variant="hard", step_rule=rule, steps=100)
        assert loss_of(case, merge) - lowest < 0.05


@pytest.mark.parametrize("parameters", [item for item in VARIANTS if "score" not in item])
@pytest.mark.parametrize("granularity", ["task", "layer"])
def test_irrelevant_vertices_change_nothing(case: Case, parameters: dict[str, Any], granularity: str) -> None:
    alone = run(case, steps=4, granularity=granularity, **parameters)
    crowd = run(case, [*case.noise, *case.corners], steps=4, granularity=granularity, **parameters)
    assert all(torch.equal(alone.tensors[name], crowd.tensors[name]) for name in SHAPES)
    assert all(crowd.shares()[name] == 0 for name in case.noise)


@pytest.mark.parametrize("granularity", ["task", "layer"])
def test_the_gap_shrinks_as_one_over_t(case: Case, granularity: str) -> None:
    lowest = case.minimum()[1] if granularity == "task" else None
    losses: list[float] = []
    config = FrankWolfeConfig(variant="hard", step_rule="classic", steps=60, granularity=granularity)  # type: ignore[arg-type]
    pool = {name: case.fine_tunes[name] for name in case.corners}
    gaps: list[float] = []

    def note(step: Step) -> None:
        losses.append(step.loss)
        gaps.append(step.gap)

    merge_frank_wolfe(case.start, pool, case.objective, config, note)
    if lowest is None:
        lowest = loss_of(case, run(case, variant="soft", granularity="layer", steps=20))
    # Jaggi (ICML 2013), theorem 1: l(θ_t) − l* ≤ 2 C / (t + 2), C at most the curvature times the squared diameter,
    # for a product of hulls the sum over its factors, each at most that.
    bound = 2 * case.diameter() * (3 if granularity == "layer" else 1)
    for t, (loss, gap) in enumerate(zip(losses, gaps, strict=True)):
        if t:
            assert loss - lowest <= bound / (t + 2)
        assert gap >= loss - lowest - 1e-6


@pytest.mark.parametrize("parameters", VARIANTS)
@pytest.mark.parametrize("granularity", ["task", "layer"])
def test_the_outcome_lies_in_the_hull(case: Case, parameters: dict[str, Any], granularity: str) -> None:
    merge = run(case, steps=5, granularity=granularity, **parameters)
    assert merge.vertices == (INITIAL, "t0", "t1", "t2", "t3")
    assert bool((merge.coefficients >= 0).all())
    torch.testing.assert_close(merge.coefficients.sum(0), torch.ones(merge.coefficients.shape[1]).double())
    corners = [unflatten(flat) for flat in (case.base, *case.corners.values())]
    for p, name in enumerate(SHAPES):
        column = merge.coefficients[:, p if granularity == "layer" else 0]
        expected = sum(float(c) * corner[name] for c, corner in zip(column, corners, strict=True))
        torch.testing.assert_close(merge.tensors[name], expected)
    assert sum(merge.shares().values()) == pytest.approx(1)


def test_classic_steps_are_the_textbooks(case: Case) -> None:
    steps = run(case, variant="hard", step_rule="classic", steps=4).steps
    assert [step.moved for step in steps] == [1.0, 2 / 3, 0.5, 0.4]
    small = run(case, variant="hard", step_rule="scaled", steps=3).steps
    assert [step.moved for step in small] == pytest.approx([0.1, 0.2 / 3, 0.05])


@pytest.mark.parametrize("granularity", ["task", "layer"])
def test_the_first_vertex_is_the_argmin_of_the_inner_product(case: Case, granularity: str) -> None:
    merge = run(case, variant="hard", step_rule="classic", steps=1, granularity=granularity)
    _, gradient = case.objective.loss_and_gradient(unflatten(case.base))
    corners = {name: unflatten(flat) for name, flat in ({INITIAL: case.base} | case.corners).items()}
    products = {v: {p: float((gradient[p] * corners[v][p]).sum()) for p in SHAPES} for v in corners}
    for p in SHAPES:
        if granularity == "layer":
            best = min(corners, key=lambda v: products[v][p])
        else:
            best = min(corners, key=lambda v: sum(products[v].values()))
        if gradient[p].any():
            assert torch.equal(merge.tensors[p], corners[best][p])
        else:
            assert torch.equal(merge.tensors[p], corners[INITIAL][p] if granularity == "layer" else corners[best][p])


def test_cosine_weighs_every_tensor_alike(case: Case) -> None:
    merge = run(case, variant="hard", score="cosine", step_rule="classic", steps=1)
    _, gradient = case.objective.loss_and_gradient(unflatten(case.base))
    corners = {name: unflatten(flat) for name, flat in ({INITIAL: case.base} | case.corners).items()}

    def score(vertex: str) -> float:
        total = 0.0
        for p in SHAPES:
            norms = float(gradient[p].norm() * corners[vertex][p].norm())
            total += float((gradient[p] * corners[vertex][p]).sum()) / norms if norms else 0.0
        return total

    assert flatten(merge.tensors).float().equal(flatten(corners[min(corners, key=score)]).float())


def test_cosine_survives_a_vertex_of_zeros(tmp_path: Path) -> None:
    zero, one = torch.zeros(SIZE).double(), torch.ones(SIZE).double()
    objective = Quadratic({"task": one}, one)
    fine_tunes = {"one": save(tmp_path / "one", one)}
    config = FrankWolfeConfig(variant="hard", score="cosine")
    merge = merge_frank_wolfe(save(tmp_path / "base", zero), fine_tunes, objective, config)
    torch.testing.assert_close(flatten(merge.tensors), one)


@pytest.mark.parametrize("parameters", VARIANTS)
def test_a_zero_gradient_moves_nothing(tmp_path: Path, parameters: dict[str, Any]) -> None:
    flat = torch.randn(SIZE).double()
    start = save(tmp_path / "base", flat)
    fine_tunes = {"other": save(tmp_path / "other", flat + 1)}
    objective = Quadratic({"task": flatten(unflatten(flat))}, torch.ones(SIZE).double())
    merge = merge_frank_wolfe(start, fine_tunes, objective, FrankWolfeConfig.model_validate(parameters))
    assert [step.finished for step in merge.steps] == [True]
    assert all(torch.equal(merge.tensors[name], start.tensor(name)) for name in SHAPES)


@pytest.mark.parametrize("parameters", VARIANTS)
def test_a_tensor_without_gradient_stays_where_layers_choose(tmp_path: Path, parameters: dict[str, Any]) -> None:
    flat = flatten(unflatten(torch.randn(SIZE).double()))
    curvature = flatten({name: torch.full(shape, float(name != "b")) for name, shape in SHAPES.items()})
    start = save(tmp_path / "base", flat)
    fine_tunes = {"other": save(tmp_path / "other", flat + 1)}
    objective = Quadratic({"task": flat + 2}, curvature)
    config = FrankWolfeConfig.model_validate({**parameters, "granularity": "layer"})
    merge = merge_frank_wolfe(start, fine_tunes, objective, config)
    assert torch.equal(merge.tensors["b"], start.tensor("b"))
    assert not torch.equal(merge.tensors["a"], start.tensor("a"))


@pytest.mark.parametrize("granularity", ["task", "layer"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_soft_is_as_good_as_hard(case: Case, granularity: str, steps: int) -> None:
    soft = run(case, variant="soft", soft={"steps": 10}, granularity=granularity, steps=steps)
    for rule in ("classic", "scaled", "line_search"):
        hard = run(case, variant="hard", step_rule=rule, granularity=granularity, steps=steps)
        assert loss_of(case, soft) <= loss_of(case, hard) + 1e-6


@pytest.mark.parametrize("parameters", [{"variant": "hard"}, {"variant": "soft"}])
@pytest.mark.parametrize("granularity", ["task", "layer"])
def test_the_loss_never_rises(case: Case, parameters: dict[str, Any], granularity: str) -> None:
    merge = run(case, granularity=granularity, steps=8, **parameters)
    losses = [*(step.loss for step in merge.steps), loss_of(case, merge)]
    assert all(later <= earlier + 1e-6 for earlier, later in pairwise(losses))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("parameters", [*VARIANTS, {"init": {"method": "task_arithmetic"}}])
def test_the_order_of_the_models_does_not_move_a_bit(case: Case, parameters: dict[str, Any]) -> None:
    names = [*case.corners, *list(case.noise)[:3]]
    forward, backward = (run(case, order, steps=4, **parameters) for order in (names, names[::-1]))
    assert all(torch.equal(forward.tensors[name], backward.tensors[name]) for name in SHAPES)
    assert forward.steps == backward.steps


def test_starting_from_another_method(case: Case) -> None:
    parameters = {"method": "task_arithmetic", "parameters": {"weight": 0.4}}
    merge = run(case, variant="hard", step_rule="scaled", step_size=1e-9, steps=1, init=parameters)
    expected = case.base + 0.4 * sum(corner - case.base for corner in case.corners.values())
    torch.testing.assert_close(flatten(merge.tensors), expected, rtol=1e-5, atol=1e-6)
    assert merge.steps[0].loss == pytest.approx(case.objective.at(expected), rel=1e-5)


def test_a_local_update_makes_the_vertices(case: Case) -> None:
    wide = {"method": "task_arithmetic", "parameters": {"weight": 4.0}}
    plain, merge = run(case, steps=6), run(case, steps=6, local_update=wide)
    assert loss_of(case, merge) < loss_of(case, plain) - 0.1
    corners = [case.base, *(case.base + 4 * (corner - case.base) for corner in case.corners.values())]
    expected = sum(float(c) * corner for c, corner in zip(merge.coefficients[:, 0], corners, strict=True))
    torch.testing.assert_close(flatten(merge.tensors), expected, rtol=1e-5, atol=1e-5)


def test_what_is_excluded_stays(case: Case) -> None:
    merge = run(case, exclude=["a"])
    assert set(merge.tensors) == {"b", "c"}
    base = case.start.tensor("a")
    assert merge.method("a", base, None) is base  # type: ignore[arg-type]
    moved = merge.method("b", case.start.tensor("b", torch.float64), None)  # type: ignore[arg-type]
    assert moved.dtype == torch.float64
    with pytest.raises(ValueError, match="leave no tensor"):
        run(case, include=["nothing*"])


def test_an_objective_without_a_gradient_is_named(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Quadratic, "loss_and_gradient", lambda *_: (1.0, {"a": torch.ones(3, 4)}))
    with pytest.raises(ValueError, match="no gradient of b: exclude it"):
        run(case, variant="hard")
    monkeypatch.setattr(Quadratic, "loss_and_gradient", lambda *_: (1.0, {"a": torch.full((3, 4), torch.nan)}))
    with pytest.raises(ValueError, match="gradient of a is not finite"):
        run(case, variant="hard")


@pytest.mark.parametrize("parameters", [*VARIANTS, {"init": {"method": "ties"}, "local_update": {"method": "ties"}}])
def test_memory_does_not_grow_with_the_pool(
    case: Case, parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    living, most = 0, 0
    read = Checkpoint.tensor

    def counted(self: Checkpoint, name: str, dtype: torch.dtype | None = None, rows: slice | None = None) -> Tensor:
        nonlocal living, most
        tensor = read(self, name, dtype, rows=rows).clone()
        living += 1
        most = max(most, living)
        weakref.finalize(tensor, gone)
        return tensor

    def gone() -> None:
        nonlocal living
        living -= 1

    monkeypatch.setattr(Checkpoint, "tensor", counted)
    peaks = []
    for pool in (list(case.corners), [*case.corners, *list(case.noise)[:8]]):
        most = 0
        run(case, pool, steps=2, **parameters)
        peaks.append(most)
        assert living == 0
    assert peaks[0] == peaks[1] <= 3
